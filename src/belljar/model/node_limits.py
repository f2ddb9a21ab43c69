"""The largest machine that one node has room for: what a job may ask for, and what a node may be given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLimits:
    """The largest machine that fits on one node while nothing else runs there."""

    vcpus: int
    memory_mb: int
    #: The largest scratch disk; None: not known.
    disk_mb: int | None = None
