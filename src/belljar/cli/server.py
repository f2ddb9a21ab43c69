"""Which server a client command talks to, and with which key."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from belljar.local_server import is_loopback, read_admin_key, read_local_server

if TYPE_CHECKING:
    from belljar.cli.flags import ServerFlags
    from belljar.client import Client


def connect(flags: ServerFlags, *, project: str | None = None) -> Client:
    """Return a client for the named server, or for the one on this machine, acting in this project.

    Raises InvalidOption.
    """
    from belljar.client import Client
    from belljar.settings import load_settings

    settings = load_settings(server=flags.server, api_key=flags.api_key, ca_file=flags.ca_file, data_dir=flags.data_dir)
    local = read_local_server(settings.data_dir) if settings.server is None else None
    address = settings.server or (local.url if local is not None else None)
    url = address or f"http://{settings.host}:{settings.port}"
    if "://" not in url:
        url = f"http://{url}"
    key = settings.api_key
    # The admin key is sent to this machine's server only: not to another machine, and not to a program that listens on
    # the port of a server that does not run.
    if key is None and address is not None and _is_this_machine(url):
        key = read_admin_key(settings.data_dir)
    if settings.ca_file is None and local is not None:
        return Client(url, key, project=project, ca_file=local.ca_file, server_name=local.server_name)
    return Client(url, key, project=project, ca_file=settings.ca_file)


def _is_this_machine(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname)
    except ValueError:
        return False
