"""Whether a hypervisor really boots an image's kernel here, found out by doing it once.

A /dev/kvm that opens proves nothing: nested virtualisation in software may emulate too little of a processor, and says
so late or never. So the real kernel is booted until its agent answers, within a few seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from belljar.model.errors import BelljarError, MachineTimeout
from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.deadlines import patience
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.node.machines.racing import run_unless_dead

#: Under KVM an agent answers within a second; software emulation would need about half of this.
_SECONDS = 5.0
_MEMORY_MB = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How a boot went. `fault` is None when the agent answered."""

    fault: str | None
    milliseconds: float
    #: Whether it was only too slow, which a busy host may be once.
    slow: bool = False


async def probe(hypervisor: Hypervisor, image: Image, boot_timeout_seconds: float) -> Probe:
    """Boot the image's kernel until its agent answers, within a twelfth of the time that a boot may take, 5 s at least.

    A hypervisor that does not work raises nothing.
    """
    seconds = _SECONDS * patience(boot_timeout_seconds)
    # Any disk that can be read does for the script's.
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=_MEMORY_MB), script_disk=image.root)
    started = time.monotonic()
    fault, slow = None, False
    try:
        async with hypervisor.machine(spec) as machine:
            await run_unless_dead(machine, AgentConnection(machine.reader, machine.writer).open(seconds))
    except BelljarError as error:
        fault, slow = error.message, isinstance(error, MachineTimeout)
    return Probe(fault=fault, slow=slow, milliseconds=(time.monotonic() - started) * 1000)
