"""Whether a hypervisor really boots an image's kernel here, found out by doing it once.

A /dev/kvm that opens proves nothing: nested virtualisation in software may emulate too little of a processor, and says
so late or never. So the real kernel is booted until its agent answers, within a few seconds.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from belljar.errors import BelljarError, HostError, MachineTimeout
from belljar.guest.session import Session
from belljar.images.manifest import Image
from belljar.machines.protocol import Hypervisor, Machine, MachineSpec, Shape

#: Under KVM an agent answers within a second; software emulation would need about half of this.
_SECONDS = 5.0
_MEMORY_MB = 128
_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How a boot went. `fault` is None when the agent answered."""

    fault: str | None
    milliseconds: float
    #: Whether it was only too slow, which a busy host may be once.
    slow: bool = False


async def probe(hypervisor: Hypervisor, image: Image) -> Probe:
    """Boot the image's kernel until its agent answers, within 5 s. A hypervisor that does not work raises nothing."""
    # Any disk that can be read does for the script's.
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=_MEMORY_MB), script_disk=image.root)
    started = time.monotonic()
    fault, slow = None, False
    try:
        async with hypervisor.machine(spec) as machine:
            await _until_answered(machine)
    except BelljarError as error:
        fault, slow = error.message, isinstance(error, MachineTimeout)
    return Probe(fault=fault, slow=slow, milliseconds=(time.monotonic() - started) * 1000)


async def _until_answered(machine: Machine) -> None:
    """Raises HostError with the reason when the machine dies first, MachineTimeout when it does not answer."""
    opening = asyncio.create_task(Session(machine.reader, machine.writer).open(_SECONDS))
    dying = asyncio.create_task(machine.death())
    try:
        await asyncio.wait({opening, dying}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done() and opening.exception() is not None:
            await asyncio.wait({dying}, timeout=_LAST_WORDS_SECONDS)  # a death says why the conversation ended
        if dying.done() and (not opening.done() or opening.exception() is not None):
            raise HostError(dying.result().message)
        opening.result()
    finally:
        opening.cancel()
        dying.cancel()
        await asyncio.gather(opening, dying, return_exceptions=True)
