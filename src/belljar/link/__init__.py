"""The interface through which a node works for the control plane: leases, output, artifacts, reports.

Only values of the model, bytes and paths of local files cross it, so that it can be carried over HTTPS. It must never
hand a database, a bucket or a callable to a node.
"""
