"""What a node reports about itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class NodeReport(BaseModel):
    """A node's state at its last heartbeat. Fields that another release added are passed over."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    hostname: str
    version: str
    started_at: datetime
    hypervisor: str | None = None
    """None until the node has chosen one."""
    accelerator: str | None = None
    vcpus: int
    memory_mb: int
    largest_memory_mb: int
    """Memory of the largest job that could ever run there."""
    vcpus_free: int
    memory_free_mb: int
    largest_disk_mb: int | None = None
    """The largest scratch disk that there would be room for if nothing ran there; None: not known."""
    running_jobs: int
    waiting_clones: int = 0
    """Clones of snapshots that wait for jobs."""
    waiting_memory_mb: int = 0
    """Memory that those clones take."""
    snapshots: tuple[dict[str, Any], ...] = ()
    """What machines are cloned from: image and its digest, shape, hypervisor, bytes on the disk."""
    images: tuple[str, ...] | None = None
    """Digests of the node's images; None from a node that does not report them."""
