"""The parts that a worker works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from belljar.images.catalog import Images
from belljar.link.interface import ControlLink
from belljar.link.sandboxes import SandboxLink
from belljar.model.image import Image
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.worker.retry import RetryTimes
from belljar.node.worker.warm_ups import WarmUps
from belljar.settings import Settings


@dataclass(frozen=True, kw_only=True)
class WorkerContext:
    """A worker's settings, its link to the control plane, and what it makes machines with."""

    settings: Settings
    link: ControlLink
    images: Images
    #: Chooses what runs an image's machines on this host.
    hypervisor: Callable[[Image], Awaitable[Hypervisor]]
    provisioner: MachineProvisioner
    warm_ups: WarmUps
    #: Where sandboxes come from; None: this worker takes none.
    sandbox_link: SandboxLink | None = None
    retry_times: RetryTimes = field(default_factory=RetryTimes)
