"""belljar runs untrusted code, each job in its own microVM.

The Python SDK is here: `from belljar import Client, AsyncClient, function`. It is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from belljar.client import (
        AsyncClient,
        Client,
        CodeFailed,
        CommandFailed,
        Conflict,
        FunctionRefused,
        JobFailed,
        LimitReached,
        LocalPathRefused,
        NotFound,
        Refused,
        RemoteError,
        ServerError,
        Unreachable,
    )
    from belljar.client.default_client import function

__all__ = [
    "AsyncClient",
    "Client",
    "CodeFailed",
    "CommandFailed",
    "Conflict",
    "FunctionRefused",
    "JobFailed",
    "LimitReached",
    "LocalPathRefused",
    "NotFound",
    "Refused",
    "RemoteError",
    "ServerError",
    "Unreachable",
    "function",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "function":
        from belljar.client.default_client import function

        return function
    from belljar import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
