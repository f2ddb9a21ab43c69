"""What a machine really takes of its host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.M)


def resident_mb(pids: Iterable[int]) -> float:
    """MiB that processes take together: their proportional set sizes, in which what they share with others counts in
    part (proc_pid_smaps_rollup(5)). Processes that are gone take nothing.
    """
    total_kb = 0
    for pid in pids:
        try:
            found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
        except OSError:
            continue
        total_kb += int(found[1]) if found else 0
    return total_kb / 1024


def children(pid: int) -> list[int]:
    """Process ids below a process, at any depth; empty on kernels without CONFIG_PROC_CHILDREN."""
    try:
        below = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [found for each in below for found in (each, *children(each))]
