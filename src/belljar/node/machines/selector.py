"""Chooses the hypervisor and accelerator that run machines on this host. No other place chooses.

`auto` is Firecracker if it is installed and boots the image's kernel with KVM, else QEMU with KVM if that boots it,
else QEMU's software emulation. Only a boot shows whether KVM works (probe.py). The choice is cached for as long as it
can be valid: this boot of the host, this kernel, these programs, this user.
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
from belljar.node.machines.deadline_uses import deadline_uses
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.probe import probe
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from belljar.system.atomic_write import atomic_write

log = structlog.get_logger()

KVM = Path("/dev/kvm")
#: A choice that may be due to a busy host is made again after this time.
_RETRY_SECONDS = 86_400.0
_SETTINGS = "set in the settings"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A hypervisor and accelerator, and the reason, for `belljar doctor` and the log."""

    hypervisor: str
    accelerator: str
    reason: str
    #: Whether a later probe may choose otherwise: the host was only too slow.
    provisional: bool = False


class HypervisorSelector:
    """Chooses once for each kernel and caches the choice, in memory and in the data folder's cache."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hypervisors: dict[tuple[str, str], Hypervisor] = {}
        self._choices: dict[str, Choice] = {}
        self._choice_lock = asyncio.Lock()
        self._open_lock = threading.Lock()
        deadline_uses.keep_in(settings.paths.deadline_uses)

    async def hypervisor(self, image: Image) -> Hypervisor:
        """Return the driver for this image's machines. Raises MissingTool, HostError."""
        choice = await self.choose(image)
        return await in_thread(self._open, choice.hypervisor, choice.accelerator)

    async def choose(self, image: Image) -> Choice:
        """Return the choice for this image, with its reason. Raises MissingTool, HostError."""
        architecture = image.manifest.architecture
        if architecture != platform.machine():
            raise HostError(f"the image {image.name} is for {architecture}, this host is {platform.machine()}")
        configured = await in_thread(self._choice_from_settings)
        if configured is not None:
            return configured
        kernel = image.manifest.kernel.sha256
        async with self._choice_lock:
            if kernel not in self._choices:
                self._choices[kernel] = await self._choose_by_probe(image)
            return self._choices[kernel]

    def _open(self, hypervisor: str, accelerator: str) -> Hypervisor:
        """Return the only driver object of that kind. Blocks: it runs the program for its version."""
        key = (hypervisor, accelerator)
        with self._open_lock:
            if key not in self._hypervisors:
                self._hypervisors[key] = (
                    FirecrackerHypervisor(self._settings)
                    if hypervisor == "firecracker"
                    else QemuHypervisor(self._settings, accelerator)
                )
            return self._hypervisors[key]

    def _choice_from_settings(self) -> Choice | None:
        """Return the choice that the settings prescribe; None when a probe has to decide. Raises HostError."""
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
            reason = f"{_SETTINGS}, and Firecracker is installed"
            return Choice(hypervisor="firecracker", accelerator="kvm", reason=reason)
        return Choice(hypervisor="qemu", accelerator=accelerator, reason=_SETTINGS)

    def _firecracker(self) -> tuple[Hypervisor | None, str]:
        """Return Firecracker if it can be used here, else None and the fault; no fault if it is not installed."""
        try:
            return self._open("firecracker", "kvm"), ""
        except MissingTool:
            return None, ""
        except HostError as error:
            return None, error.message

    async def _choose_by_probe(self, image: Image) -> Choice:
        if not KVM.exists():
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this host has no /dev/kvm")
        if not os.access(KVM, os.R_OK | os.W_OK):
            return Choice(hypervisor="qemu", accelerator="tcg", reason="this user may not open /dev/kvm")
        firecracker, fault = await in_thread(self._firecracker) if self._settings.hypervisor == "auto" else (None, "")
        qemu = await in_thread(self._open, "qemu", "kvm")
        candidates = [each for each in (firecracker, qemu) if each is not None]
        cache = _ChoiceCache(self._settings, image, candidates, fault)
        choice = cache.read()
        if choice is None:
            choice = await _probe_in_turn(candidates, fault, image, self._settings.boot_timeout_seconds)
            cache.write(choice)
            log.info("hypervisor_chosen", **dataclasses.asdict(choice))
        return choice


async def _probe_in_turn(candidates: list[Hypervisor], fault: str, image: Image, boot_timeout_seconds: float) -> Choice:
    """Return the first candidate that boots the image's kernel with KVM; the reason names the others' faults."""
    faults, provisional = [fault] if fault else [], False
    for hypervisor in candidates:
        result = await probe(hypervisor, image, boot_timeout_seconds)
        if result.fault is None:
            reason = f"KVM booted the image's kernel in {result.milliseconds:.0f} ms"
            return Choice(
                hypervisor=hypervisor.name,
                accelerator="kvm",
                reason="; ".join([*faults, reason]),
                provisional=provisional,
            )
        faults.append(f"KVM does not boot the image's kernel here under {hypervisor.name}: {result.fault}")
        provisional = provisional or result.slow
    return Choice(hypervisor="qemu", accelerator="tcg", reason="; ".join(faults), provisional=provisional)


class _ChoiceCache:
    """The choice in a file, with everything that it depends on."""

    def __init__(self, settings: Settings, image: Image, candidates: list[Hypervisor], fault: str) -> None:
        kernel = image.manifest.kernel.sha256
        self._path = settings.paths.hypervisor_choice(kernel)
        self._key = {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "kernel": kernel,
            "initramfs": image.manifest.initramfs.sha256,
            "programs": [hypervisor.identity for hypervisor in candidates],
            "fault": fault,
            "uid": os.geteuid(),
        }

    def read(self) -> Choice | None:
        """Return the cached choice if it is still valid, else None."""
        try:
            entry = json.loads(self._path.read_text())
            choice = Choice(**entry["choice"])
            is_fresh = entry["expires"] is None or time.time() < entry["expires"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return choice if is_fresh and entry.get("key") == self._key else None

    def write(self, choice: Choice) -> None:
        """Cache the choice; a provisional one for a day."""
        expires = time.time() + _RETRY_SECONDS if choice.provisional else None
        text = json.dumps({"key": self._key, "expires": expires, "choice": dataclasses.asdict(choice)})
        try:
            private_folder(self._path.parent)
            atomic_write(self._path, text)
        except (OSError, HostError) as error:
            log.warning("choice_cache_write_failed", error=str(error))
