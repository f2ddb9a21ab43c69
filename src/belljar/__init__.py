"""belljar runs code that you don't trust, each job sealed in its own microVM."""

__version__ = "0.1.0"
