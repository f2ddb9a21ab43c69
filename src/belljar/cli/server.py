"""Which server a client command talks to, and with which key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from belljar.local_server import is_loopback, read_address, read_admin_key

if TYPE_CHECKING:
    from belljar.client import Client


def connect(server: str | None, api_key: str | None, data_dir: Path | None) -> Client:
    """A client for the server that was named, or for the one on this machine."""
    from belljar.client import Client
    from belljar.settings import load_settings

    settings = load_settings(server=server, api_key=api_key, data_dir=data_dir)
    found = settings.server or read_address(settings.data_dir)
    url = found or f"http://{settings.host}:{settings.port}"
    if "://" not in url:
        url = f"http://{url}"
    key = settings.api_key
    # The key found here is this machine's; it is shown to no other, and to nobody who happens to listen on the port of
    # a server that does not run.
    if key is None and found is not None and _is_this_machine(url):
        key = read_admin_key(settings.data_dir)
    return Client(url, key)


def _is_this_machine(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname)
    except ValueError:
        return False
