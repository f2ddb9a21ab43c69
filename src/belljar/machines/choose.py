"""Which hypervisor and accelerator run machines on this host. The one place that chooses.

`auto` finds out whether KVM works by booting the image's real kernel with it: a /dev/kvm that opens may still not
run it (nested virtualisation in software, emulation failures). The answer is remembered for as long as it can hold:
this boot of the host, this kernel, this hypervisor, this user.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar.errors import BelljarError, HostError, MachineTimeout
from belljar.guest.session import Session
from belljar.images.manifest import Image
from belljar.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings

log = structlog.get_logger()

KVM = Path("/dev/kvm")
#: Under KVM an agent answers within a second; software emulation would need about half of this.
_PROBE_SECONDS = 5.0
#: A host that was too busy to boot in time is asked again after this long.
_RETRY_SECONDS = 86_400.0
_PROBE_MEMORY_MB = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was chosen and why, for `belljar doctor` and the log."""

    hypervisor: str
    accelerator: str
    reason: str
    #: Whether a later try may say otherwise: the host was only too slow.
    doubtful: bool = False


class Chooser:
    """Chooses once for each kernel and remembers it, in memory and below the data folder's cache."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, Hypervisor] = {}
        self._probes: dict[str, Choice] = {}
        self._choosing = asyncio.Lock()

    async def hypervisor(self, image: Image) -> Hypervisor:
        """What runs this image's machines here. Raises MissingTool, HostError."""
        choice = await self.choose(image)
        if choice.accelerator not in self._made:
            self._made[choice.accelerator] = QemuHypervisor(self._settings, choice.accelerator)
        return self._made[choice.accelerator]

    async def choose(self, image: Image) -> Choice:
        """The same as a value, with the reason."""
        architecture = image.manifest.architecture
        if architecture != platform.machine():
            raise HostError(f"the image {image.name} is for {architecture}, this host is {platform.machine()}")
        if self._settings.accelerator != "auto":
            return Choice(hypervisor="qemu", accelerator=self._settings.accelerator, reason="the settings say so")
        kernel = image.manifest.kernel.sha256
        async with self._choosing:
            if kernel not in self._probes:
                self._probes[kernel] = await self._probed(image)
            return self._probes[kernel]

    async def _probed(self, image: Image) -> Choice:
        if not KVM.exists():
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this host has no /dev/kvm")
        if not os.access(KVM, os.R_OK | os.W_OK):
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this user may not open /dev/kvm")
        memory = _Memory(self._settings, image)
        known = memory.recall()
        if known is None:
            known = await probe_kvm(self._settings, image)
            memory.keep(known)
            log.info("accelerator_chosen", accelerator=known.accelerator, reason=known.reason)
        return known


async def probe_kvm(settings: Settings, image: Image) -> Choice:
    """Boot the image's kernel with KVM until its agent answers, within 5 s. A KVM that does not work raises nothing."""
    hypervisor = QemuHypervisor(settings, "kvm")
    shape = Shape(vcpus=1, memory_mb=_PROBE_MEMORY_MB)
    spec = MachineSpec(image=image, shape=shape, script_disk=image.root)  # any disk that can be read does
    started = time.monotonic()
    try:
        async with hypervisor.machine(spec) as machine:
            opening = asyncio.create_task(Session(machine.reader, machine.writer).open(_PROBE_SECONDS))
            dying = asyncio.create_task(machine.death())
            try:
                await asyncio.wait({opening, dying}, return_when=asyncio.FIRST_COMPLETED)
                if not opening.done() or (dying.done() and opening.exception() is not None):
                    raise HostError((await dying).message)
                opening.result()
            finally:
                opening.cancel()
                dying.cancel()
                await asyncio.gather(opening, dying, return_exceptions=True)
    except BelljarError as error:
        reason = f"KVM does not boot the image's kernel here: {error.message}"
        slow = isinstance(error, MachineTimeout)
        return Choice(hypervisor="qemu", accelerator="tcg", reason=reason, doubtful=slow)
    milliseconds = (time.monotonic() - started) * 1000
    return Choice(hypervisor="qemu", accelerator="kvm", reason=f"KVM booted the kernel in {milliseconds:.0f} ms")


class _Memory:
    """The probe's answer in a file, with what it depends on."""

    def __init__(self, settings: Settings, image: Image) -> None:
        self._path = settings.data_dir / "cache" / "accelerator.json"
        self._key = {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "kernel": image.manifest.kernel.sha256,
            "initramfs": image.manifest.initramfs.sha256,
            "qemu": QemuHypervisor(settings, "kvm").identity,
            "uid": os.geteuid(),
        }

    def recall(self) -> Choice | None:
        try:
            kept = json.loads(self._path.read_text())
            choice = Choice(**kept["choice"])
            fresh = kept["expires"] is None or time.time() < kept["expires"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return choice if fresh and kept.get("key") == self._key else None

    def keep(self, choice: Choice) -> None:
        expires = time.time() + _RETRY_SECONDS if choice.doubtful else None
        text = json.dumps({"key": self._key, "expires": expires, "choice": dataclasses.asdict(choice)})
        partial = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial.write_text(text)
            partial.replace(self._path)
        except OSError as error:
            log.warning("accelerator_not_remembered", error=str(error))
