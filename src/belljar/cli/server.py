"""Which server a client command talks to, and with which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from belljar.cli.flags import ServerFlags
    from belljar.client import AsyncClient, Client


def connect(flags: ServerFlags, *, project: str | None = None) -> Client:
    """Return a client for the named server, or for the one on this machine, acting in this project.

    Raises InvalidOption.
    """
    from belljar.client import Client

    # A person repeats a command; a command that repeats requests would be silent meanwhile.
    return Client(**_found(flags), project=project, max_retries=0)


def connect_async(flags: ServerFlags) -> AsyncClient:
    """Return an asynchronous client for the same server, which continues broken streams. Raises InvalidOption."""
    from belljar.client import AsyncClient

    return AsyncClient(**_found(flags))


def _found(flags: ServerFlags) -> dict[str, Any]:
    from belljar.client.found_server import find_server

    found = find_server(flags.server, flags.api_key, ca_file=flags.ca_file, data_dir=flags.data_dir)
    return {"url": found.url, "key": found.key, "ca_file": found.ca_file, "server_name": found.server_name}
