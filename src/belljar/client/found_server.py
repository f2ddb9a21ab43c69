"""Which server a client talks to, and with which key, when the caller names none.

The SDK and the commands use the same settings: `BELLJAR_SERVER`, `BELLJAR_API_KEY`, `BELLJAR_CA_FILE`, `belljar.toml`,
else the server that runs on this machine's data folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from belljar.local_server import is_loopback, read_admin_key, read_local_server
from belljar.settings import load_settings


@dataclass(frozen=True)
class FoundServer:
    """A server's URL, the key for it, and what its certificate is verified with."""

    url: str
    key: str | None = field(repr=False)
    ca_file: Path | None
    server_name: str | None


def find_server(
    url: str | None = None, key: str | None = None, *, ca_file: Path | None = None, data_dir: Path | None = None
) -> FoundServer:
    """Return the server to use; arguments that are not None take precedence over settings. Raises InvalidOption."""
    settings = load_settings(server=url, api_key=key, ca_file=ca_file, data_dir=data_dir)
    local = read_local_server(settings.data_dir) if settings.server is None else None
    address = settings.server or (local.url if local is not None else None)
    found = address or f"http://{settings.host}:{settings.port}"
    if "://" not in found:
        found = f"http://{found}"
    key = settings.api_key
    # The admin key is sent to this machine's server only: not to another machine, and not to a program that listens on
    # the port of a server that does not run.
    if key is None and address is not None and _is_this_machine(found):
        key = read_admin_key(settings.data_dir)
    if settings.ca_file is None and local is not None:
        return FoundServer(found, key, local.ca_file, local.server_name)
    return FoundServer(found, key, settings.ca_file, None)


def _is_this_machine(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname)
    except ValueError:
        return False
