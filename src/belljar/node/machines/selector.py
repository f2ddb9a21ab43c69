"""Which hypervisor and accelerator run machines on this host. The one place that chooses.

`auto` is Firecracker if it is installed and KVM really boots the image's kernel with it, else QEMU with KVM if that
boots it, else QEMU's software emulation. Only a boot tells (probe.py). The answer is remembered for as long as it can
hold: this boot of the host, this kernel, these programs, this user.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar.data_dir import private_folder
from belljar.model.errors import HostError, MissingTool
from belljar.model.image import Image
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.probe import probe
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from belljar.system.atomic_write import atomic_write

log = structlog.get_logger()

KVM = Path("/dev/kvm")
#: A host that was too busy to boot in time is asked again after this long.
_RETRY_SECONDS = 86_400.0
_SETTINGS = "the settings say so"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was chosen and why, for `belljar doctor` and the log."""

    hypervisor: str
    accelerator: str
    reason: str
    #: Whether a later try may say otherwise: the host was only too slow.
    doubtful: bool = False


class HypervisorSelector:
    """Chooses once for each kernel and remembers it, in memory and below the data folder's cache."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[tuple[str, str], Hypervisor] = {}
        self._chosen: dict[str, Choice] = {}
        self._choosing = asyncio.Lock()
        self._making = threading.Lock()

    async def hypervisor(self, image: Image) -> Hypervisor:
        """What runs this image's machines here. Raises MissingTool, HostError."""
        choice = await self.choose(image)
        return await in_thread(self._make, choice.hypervisor, choice.accelerator)

    async def choose(self, image: Image) -> Choice:
        """The same as a value, with the reason. Raises MissingTool, HostError."""
        architecture = image.manifest.architecture
        if architecture != platform.machine():
            raise HostError(f"the image {image.name} is for {architecture}, this host is {platform.machine()}")
        told = await in_thread(self._told)
        if told is not None:
            return told
        kernel = image.manifest.kernel.sha256
        async with self._choosing:
            if kernel not in self._chosen:
                self._chosen[kernel] = await self._found_out(image)
            return self._chosen[kernel]

    def _make(self, hypervisor: str, accelerator: str) -> Hypervisor:
        """The one object of that kind. Blocks: it runs the program to learn its version."""
        key = (hypervisor, accelerator)
        with self._making:
            if key not in self._made:
                self._made[key] = (
                    FirecrackerHypervisor(self._settings)
                    if hypervisor == "firecracker"
                    else QemuHypervisor(self._settings, accelerator)
                )
            return self._made[key]

    def _told(self) -> Choice | None:
        """What the settings leave no choice about; None when it is to be found out."""
        hypervisor, accelerator = self._settings.hypervisor, self._settings.accelerator
        if hypervisor == "firecracker":
            if accelerator == "tcg":
                raise HostError(
                    "Firecracker runs machines with KVM alone; set accelerator to auto, or hypervisor to qemu"
                )
            return Choice(hypervisor="firecracker", accelerator="kvm", reason=_SETTINGS)
        if accelerator == "auto":
            return None
        if accelerator == "kvm" and hypervisor == "auto" and self._firecracker()[0] is not None:
            return Choice(hypervisor="firecracker", accelerator="kvm", reason=f"{_SETTINGS}, and Firecracker is there")
        return Choice(hypervisor="qemu", accelerator=accelerator, reason=_SETTINGS)

    def _firecracker(self) -> tuple[Hypervisor | None, str]:
        """Firecracker if it can be used here, else None and why; nothing is said of one that is not installed."""
        try:
            return self._make("firecracker", "kvm"), ""
        except MissingTool:
            return None, ""
        except HostError as error:
            return None, error.message

    async def _found_out(self, image: Image) -> Choice:
        if not KVM.exists():
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this host has no /dev/kvm")
        if not os.access(KVM, os.R_OK | os.W_OK):
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this user may not open /dev/kvm")
        firecracker, fault = await in_thread(self._firecracker) if self._settings.hypervisor == "auto" else (None, "")
        qemu = await in_thread(self._make, "qemu", "kvm")
        candidates = [each for each in (firecracker, qemu) if each is not None]
        memory = _Memory(self._settings, image, candidates, fault)
        known = memory.recall()
        if known is None:
            known = await _try_in_turn(candidates, fault, image, self._settings.boot_timeout_seconds)
            memory.keep(known)
            log.info("hypervisor_chosen", **dataclasses.asdict(known))
        return known


async def _try_in_turn(candidates: list[Hypervisor], fault: str, image: Image, boot_timeout_seconds: float) -> Choice:
    """The first that boots the image's kernel with KVM; what went wrong before is part of the reason."""
    faults, doubtful = [fault] if fault else [], False
    for hypervisor in candidates:
        result = await probe(hypervisor, image, boot_timeout_seconds)
        if result.fault is None:
            reason = f"KVM booted the image's kernel in {result.milliseconds:.0f} ms"
            return Choice(
                hypervisor=hypervisor.name,
                accelerator="kvm",
                reason="; ".join([*faults, reason]),
                doubtful=doubtful,
            )
        faults.append(f"KVM does not boot the image's kernel here under {hypervisor.name}: {result.fault}")
        doubtful = doubtful or result.slow
    return Choice(hypervisor="qemu", accelerator="tcg", reason="; ".join(faults), doubtful=doubtful)


class _Memory:
    """The answer in a file, with what it depends on."""

    def __init__(self, settings: Settings, image: Image, candidates: list[Hypervisor], fault: str) -> None:
        kernel = image.manifest.kernel.sha256
        self._path = settings.paths.hypervisor_choice(kernel)
        self._key = {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "kernel": kernel,
            "initramfs": image.manifest.initramfs.sha256,
            "programs": [each.identity for each in candidates],
            "fault": fault,
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
        try:
            private_folder(self._path.parent)
            atomic_write(self._path, text)
        except (OSError, HostError) as error:
            log.warning("accelerator_not_remembered", error=str(error))
