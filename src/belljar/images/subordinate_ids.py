"""Check that an ordinary user has the subordinate ids for files of several owners (subuid(5), subgid(5))."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from belljar.images.host_tools import require_tools
from belljar.model.errors import HostError

_MIN_IDS = 65536


def require_subordinate_ids(etc: Path = Path("/etc")) -> None:
    """Raise HostError with the command for root unless this user has a range of ids; root needs none."""
    if os.geteuid() == 0:
        return
    require_tools("newuidmap")
    uid = str(os.geteuid())
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = uid
    if _uses_directory_service(etc / "nsswitch.conf") or all(
        _has_range(etc / file, (name, uid)) for file in ("subuid", "subgid")
    ):
        return
    raise HostError(
        f"files of several owners need a user namespace, and {name} has no subordinate ids for one; once, as root: "
        f"usermod --add-subuids 300000-{300000 + _MIN_IDS - 1} --add-subgids 300000-{300000 + _MIN_IDS - 1} {name}"
    )


def _has_range(path: Path, names: tuple[str, ...]) -> bool:
    fields = (line.strip().split(":") for line in _lines(path))
    return any(
        len(each) == 3 and each[0] in names and each[2].isdigit() and int(each[2]) >= _MIN_IDS for each in fields
    )


def _uses_directory_service(nsswitch: Path) -> bool:
    """Return whether ranges come from a directory service, which only newuidmap can query."""
    return any(line.split("#")[0].startswith("subid:") for line in _lines(nsswitch))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
