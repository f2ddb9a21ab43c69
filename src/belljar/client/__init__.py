"""The Python SDK, sync and async."""
