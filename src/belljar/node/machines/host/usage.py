"""Measures what a machine uses of its host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.M)


def resident_mb(pids: Iterable[int]) -> float:
    """Return the MiB that processes use together: the sum of their proportional set sizes.

    Memory shared with other processes counts in part (proc_pid_smaps_rollup(5)). Processes that have ended count zero.
    """
    total_kb = 0
    for pid in pids:
        try:
            match = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue
        total_kb += int(match[1]) if match else 0
    return total_kb / 1024


def is_stopped(pids: Iterable[int]) -> bool:
    """Return whether a signal has stopped one of the processes (proc_pid_stat(5), field 3: T)."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state in "Tt":
            return True
    return False


def children(pid: int) -> list[int]:
    """Return the process ids below a process, at any depth; none on kernels without CONFIG_PROC_CHILDREN."""
    try:
        direct = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid for child in direct for pid in (child, *children(child))]
