"""Checks whether a hypervisor can boot an image's kernel on this host, by booting it once.

A /dev/kvm that opens proves nothing: nested virtualisation in software may emulate too little of a processor, and fail
late or hang. So the real kernel is booted until its agent answers, within a few seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from belljar.model.errors import BelljarError, MachineTimeout
from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.deadline_uses import noted
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.node.machines.racing import run_unless_dead

#: Under KVM an agent answers within a second; software emulation would need about half of this.
_SECONDS = 5.0
_MEMORY_MB = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """The result of a boot. `fault` is None when the agent answered."""

    fault: str | None
    milliseconds: float
    #: Whether the boot was only too slow, as may happen on a busy host.
    slow: bool = False


async def probe(hypervisor: Hypervisor, image: Image, boot_timeout_seconds: float) -> Probe:
    """Boot the image's kernel until its agent answers, within 1/12 of `boot_timeout_seconds`, at least 5 s.

    A hypervisor that does not work is a result, not an exception.
    """
    seconds = _SECONDS * deadline_factor(boot_timeout_seconds)
    # The script disk may be any readable file.
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=_MEMORY_MB), script_disk=image.root)
    started = time.monotonic()
    fault, slow = None, False
    try:
        async with hypervisor.machine(spec) as machine:
            # A timeout may be due to KVM, so that only a success says something about deadlines here.
            with noted("probe", seconds, by_guest=True):
                await run_unless_dead(machine, AgentConnection(machine.reader, machine.writer).open(seconds))
    except BelljarError as error:
        fault, slow = error.message, isinstance(error, MachineTimeout)
    return Probe(fault=fault, slow=slow, milliseconds=(time.monotonic() - started) * 1000)
