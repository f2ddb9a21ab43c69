"""What a worker works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from belljar.blobs.store import Blobs
from belljar.images.catalog import Images
from belljar.images.manifest import Image
from belljar.jobs.changes import Changes
from belljar.machines.protocol import Hypervisor
from belljar.machines.supply import Supply
from belljar.scripts.service import ScriptService
from belljar.settings import Settings
from belljar.store.claims import SqlClaims
from belljar.store.nodes import SqlNodes
from belljar.worker.preparing import Preparations
from belljar.worker.retry import RetryTimes


@dataclass(frozen=True, kw_only=True)
class WorkerRooms:
    settings: Settings
    claims: SqlClaims
    nodes: SqlNodes
    scripts: ScriptService
    images: Images
    blobs: Blobs
    changes: Changes
    #: Chooses what runs an image's machines on this host.
    hypervisor: Callable[[Image], Awaitable[Hypervisor]]
    supply: Supply
    preparations: Preparations
    retry_times: RetryTimes = field(default_factory=RetryTimes)
