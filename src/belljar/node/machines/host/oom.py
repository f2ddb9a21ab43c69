"""Whether the kernel's out-of-memory killer ended a machine's process, and whose memory it was.

Sources: memory.events in Documentation/admin-guide/cgroup-v2.rst; memory.oom_control in cgroup-v1/memory.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from belljar.node.machines.host.cgroup import Group


@dataclass(frozen=True, kw_only=True, slots=True)
class OomReport:
    """What a machine's cgroup says about kills for want of memory."""

    #: Whether a process of the group was killed.
    killed: bool
    #: Whether the group's own limit was reached; else the host's memory ran out.
    over_limit: bool
    limit_mb: int | None


def oom_report(group: Group) -> OomReport | None:
    """Return the report of the machine's group; None where no group limits its memory, or the kernel does not say."""
    for folder in group.folders:
        report = _v2(folder) if (folder / "memory.max").exists() else _v1(folder)
        if report is not None:
            return report
    return None


def _v2(folder: Path) -> OomReport | None:
    events = _counts(folder / "memory.events")
    if "oom_kill" not in events:
        return None
    return OomReport(
        killed=events["oom_kill"] > 0,
        over_limit=events.get("oom", 0) > 0,
        limit_mb=_megabytes(folder / "memory.max"),
    )


def _v1(folder: Path) -> OomReport | None:
    control = _counts(folder / "memory.oom_control")
    if "oom_kill" not in control:  # Linux 4.13 has it
        return None
    # A failure to charge memory precedes every kill for the group's own limit.
    failures = _number(folder / "memory.failcnt")
    return OomReport(
        killed=control["oom_kill"] > 0,
        over_limit=failures is None or failures > 0,
        limit_mb=_megabytes(folder / "memory.limit_in_bytes"),
    )


def _counts(path: Path) -> dict[str, int]:
    """Return the fields of a file with a name and a number in each line; none when it cannot be read."""
    try:
        lines = path.read_text().splitlines()
        return {name: int(number) for name, number in (line.split() for line in lines)}
    except (OSError, ValueError):
        return {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _megabytes(path: Path) -> int | None:
    number = _number(path)
    return None if number is None else number >> 20
