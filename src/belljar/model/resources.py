"""The resources of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeLimits:
    """The largest machine that a node has room for when nothing else runs on it."""

    vcpus: int
    memory_mb: int
    #: The largest scratch disk; None when it is not known.
    disk_mb: int | None = None
