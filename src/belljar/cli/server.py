"""Which server a client command talks to, and with which key."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from belljar.cli.flags import ServerFlags
    from belljar.client import Client


def connect(flags: ServerFlags, *, project: str | None = None) -> Client:
    """Return a client for the named server, or for the one on this machine, acting in this project.

    Raises InvalidOption.
    """
    from belljar.client import Client
    from belljar.client.found_server import find_server

    found = find_server(flags.server, flags.api_key, ca_file=flags.ca_file, data_dir=flags.data_dir)
    # A person repeats a command; a command that repeats requests would be silent meanwhile.
    return Client(
        found.url, found.key, project=project, ca_file=found.ca_file, server_name=found.server_name, max_retries=0
    )
