"""What a worker works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from belljar.control.blobs.store import Blobs
from belljar.control.jobs.changes import Changes
from belljar.control.scripts.service import ScriptService
from belljar.control.store.claims import SqlClaims
from belljar.control.store.nodes import SqlNodes
from belljar.images.catalog import Images
from belljar.model.image import Image
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.worker.retry import RetryTimes
from belljar.node.worker.warm_ups import WarmUps
from belljar.settings import Settings


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    settings: Settings
    claims: SqlClaims
    nodes: SqlNodes
    scripts: ScriptService
    images: Images
    blobs: Blobs
    changes: Changes
    #: Chooses what runs an image's machines on this host.
    hypervisor: Callable[[Image], Awaitable[Hypervisor]]
    provisioner: MachineProvisioner
    warm_ups: WarmUps
    retry_times: RetryTimes = field(default_factory=RetryTimes)
