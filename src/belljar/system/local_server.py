"""What a server leaves in its data folder for the commands on its machine: where it listens, and the admin key."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from belljar.data_dir import is_served

_MAX_BYTES = 4096


def admin_key_path(data_dir: Path) -> Path:
    """Where the admin key lies, readable by its owner only."""
    return data_dir / "admin.key"


def read_admin_key(data_dir: Path) -> str | None:
    """The admin key's secret, for whoever may read it; None where there is none to read."""
    try:
        return admin_key_path(data_dir).read_text().strip() or None
    except OSError:
        return None


def address_path(data_dir: Path) -> Path:
    """Where a running server writes its address."""
    return data_dir / "run" / "server.json"


def read_address(data_dir: Path) -> str | None:
    """The URL of the server that runs on this data folder; None when none does.

    The file alone does not tell: a server that was killed leaves it, and somebody else may listen there by now.
    """
    if not is_served(data_dir):
        return None
    try:
        with address_path(data_dir).open("rb") as file:
            return str(json.loads(file.read(_MAX_BYTES))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address means this machine alone: `localhost`, 127.0.0.0/8, ::1."""
    if host is None:
        return False
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
