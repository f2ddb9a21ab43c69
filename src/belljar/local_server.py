"""What a server leaves in its data folder for commands on the same host: its address, and the admin key."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.data_dir import DataDir, data_folder_error, is_served, private_folder
from belljar.system.atomic_write import atomic_write

_MAX_BYTES = 4096


def read_admin_key(data_dir: Path) -> str | None:
    """Return the admin key's secret; None when there is none, or this user may not read it."""
    try:
        return DataDir(data_dir).admin_key.read_text().strip() or None
    except OSError:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalServer:
    """The server that runs on a data folder."""

    url: str
    #: The certificate to trust; None for plain HTTP.
    ca_file: Path | None
    #: A name that the server's certificate is valid for.
    server_name: str | None


def read_local_server(data_dir: Path) -> LocalServer | None:
    """Return the server that runs on this data folder; None when none does.

    The file alone is no proof: a server that was killed leaves it, and another program may use its port by now.
    """
    if not is_served(data_dir):
        return None
    try:
        with DataDir(data_dir).server_address.open("rb") as file:
            content = json.loads(file.read(_MAX_BYTES))
        ca_file, name = content.get("ca_file"), content.get("server_name")
        return LocalServer(
            url=str(content["url"]), ca_file=Path(ca_file) if ca_file else None, server_name=str(name) if name else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def read_address(data_dir: Path) -> str | None:
    """Return the URL of the server that runs on this data folder; None when none does."""
    server = read_local_server(data_dir)
    return server.url if server is not None else None


def is_loopback(host: str | None) -> bool:
    """Return whether a host name or address means this host alone: `localhost`, 127.0.0.0/8, ::1."""
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def address_file(
    data_dir: Path, url: str, ca_file: Path | None = None, server_name: str | None = None
) -> Iterator[None]:
    """Keep the server's URL where commands on this host find it, while the block runs. Raises DataFolderError.

    `ca_file` is the certificate that they trust, `server_name` a name that the server's certificate is valid for.
    """
    content = {"url": url, "pid": os.getpid(), "ca_file": ca_file and str(ca_file), "server_name": server_name}
    path = DataDir(data_dir).server_address
    private_folder(path.parent)
    try:
        atomic_write(path, json.dumps(content), mode=0o600)
    except OSError as error:
        raise data_folder_error(path, error) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
