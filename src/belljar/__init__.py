"""belljar runs untrusted code, each job in its own microVM."""

__version__ = "0.1.0"
