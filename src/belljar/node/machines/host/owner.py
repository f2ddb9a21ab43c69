"""Names the process that owns a machine, so that other processes can tell whether the owner is still alive.

Everything that a machine leaves on its host after a crash carries this name; the next start of belljar removes what
belongs to dead owners.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_NAME = re.compile(r"(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)\Z")


@functools.cache
def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _start_ticks(pid: int) -> int | None:
    """Return the start of a process in clock ticks since the host's boot (proc_pid_stat(5), field 22), or None."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def owner_name(pid: int) -> str:
    """Return the unique name of a living process: its pid namespace, its pid and its start time."""
    return f"{_pid_namespace()}-{pid}-{_start_ticks(pid)}"


def is_dead(name: str) -> bool:
    """Return whether the owner of that name has ended. False for owners in other pid namespaces: nothing is known."""
    match = _NAME.match(name)
    if match is None or int(match["namespace"]) != _pid_namespace():
        return False
    return _start_ticks(int(match["pid"])) != int(match["start"])
