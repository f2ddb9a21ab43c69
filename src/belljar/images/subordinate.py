"""What an ordinary user needs to make files of many owners: a range of user and group ids (subuid(5), subgid(5))."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from belljar.images.tool import need
from belljar.model.errors import HostError

_LEAST = 65536


def need_subordinate_ids(etc: Path = Path("/etc")) -> None:
    """Raise HostError, saying what root must do once, unless this user has a range of ids; root needs none."""
    if os.geteuid() == 0:
        return
    need("newuidmap")
    uid = str(os.geteuid())
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = uid
    if _from_elsewhere(etc / "nsswitch.conf") or all(
        _has_range(etc / file, (name, uid)) for file in ("subuid", "subgid")
    ):
        return
    raise HostError(
        f"files of many owners are made in a user namespace, and {name} has no range of ids for one; once, as root: "
        f"usermod --add-subuids 300000-{300000 + _LEAST - 1} --add-subgids 300000-{300000 + _LEAST - 1} {name}"
    )


def _has_range(path: Path, names: tuple[str, ...]) -> bool:
    fields = (line.strip().split(":") for line in _lines(path))
    return any(len(each) == 3 and each[0] in names and each[2].isdigit() and int(each[2]) >= _LEAST for each in fields)


def _from_elsewhere(nsswitch: Path) -> bool:
    """Whether ranges come from a directory service, which only the programs themselves can ask."""
    return any(line.split("#")[0].startswith("subid:") for line in _lines(nsswitch))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
