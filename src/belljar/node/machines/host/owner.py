"""Whose a machine is: the process that made it, named so that others can tell whether it still lives.

What a killed belljar leaves on its host carries this name, and whoever starts next removes what belongs to the dead.
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
    """When a process began, in clock ticks since the host's boot (proc_pid_stat(5), field 22); None without one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[19])


def owner_name(pid: int) -> str:
    """The name of a living process, never given to another: its pid namespace, its number, when it began."""
    return f"{_pid_namespace()}-{pid}-{_start_ticks(pid)}"


def is_dead(name: str) -> bool:
    """Whether the owner of that name is gone. False where this process cannot know: for owners in other namespaces."""
    match = _NAME.match(name)
    if match is None or int(match["namespace"]) != _pid_namespace():
        return False
    return _start_ticks(int(match["pid"])) != int(match["start"])
