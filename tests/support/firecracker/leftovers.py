"""Finds what machines left on this host."""

from __future__ import annotations

from pathlib import Path

from belljar.node.machines.host.cgroup import PARENT, find_hierarchies
from belljar.settings import Settings


def left_behind(settings: Settings) -> list[str]:
    """Return everything of machines that is still on this host: processes, mounts, folders, cgroups."""
    jails = settings.data_dir / "run" / "jails"
    leftovers = [str(path) for path in jails.glob("*/*")]
    leftovers += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(jails) in line]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and str(jails).encode() in _command_of(process):
            leftovers.append(f"{process.name}: {_command_of(process)[:200]!r}")
    for hierarchy in find_hierarchies():
        leftovers += [str(path) for path in (hierarchy.folder / PARENT).glob(f"*-{_own_pid()}-*")]
    return leftovers


def _command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _own_pid() -> str:
    return Path("/proc/self").readlink().name
