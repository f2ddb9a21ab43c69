"""The Python kernel: a program for the guest that runs code piece by piece in one namespace.

It needs Python 3.8 and its standard library, nothing else. `streams` has the channel to the host and the standard
streams, `rich` turns values into MIME bundles, `figures` adds plots, `notebook` stands in for `IPython.display`,
`cells` compiles code, `kernel` runs it. These modules are sent to the guest and never imported by the server. Whoever
runs code in a kernel can make it send anything.
"""
