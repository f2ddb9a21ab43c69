"""The Python SDK."""

from belljar.client.client import Client, ServerError, Unreachable

__all__ = ["Client", "ServerError", "Unreachable"]
