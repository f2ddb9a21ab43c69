"""Snapshots on this host's disk: found by what they are of, made once, kept under a budget, thrown away when doubtful.

A snapshot is a folder, written under another name and renamed when it is whole, so that a crash half-way leaves nothing
that is believed. What it depends on is its key: image, shape, hypervisor, preparation, this boot of the host. The
folder is belljar's alone (mode 0700); that its files are still what was written is told by their sizes and times.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import structlog

from belljar.model.errors import MachineError
from belljar.model.image import Image
from belljar.node.machines.boot import NoClock
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Hypervisor, MachineSpec, Shape
from belljar.node.machines.provision.warm_up import WarmUp, prepare_template
from belljar.node.machines.racing import MachineDead, run_unless_dead
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.disk_space import MB
from belljar.system.file_locks import try_lock

log = structlog.get_logger()

FORMAT = 1
_NOTE = "snapshot.json"
#: How much of its memory a machine has written when it is frozen, at most as a rule: the file is sparse.
_WRITTEN_SHARE = 0.5
_SHOWN = ("image", "digest", "shape", "hypervisor", "accelerator", "created_at")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Snapshots:
    """The snapshots of one data folder; several workers may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.paths.snapshots

    @property
    def boot_timeout_seconds(self) -> float:
        """How long a machine may take to boot here."""
        return self._settings.boot_timeout_seconds

    def key(self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp) -> str:
        """The name of the snapshot of exactly this."""
        manifest = image.manifest
        words = [
            FORMAT,
            hypervisor.name,
            hypervisor.accelerator,
            hypervisor.identity,
            [part.sha256 for part in (manifest.kernel, manifest.initramfs, manifest.root)],
            dataclasses.astuple(shape),
            warm_up_steps.words(),
            _boot_id(),
        ]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]

    def find(self, key: str) -> Path | None:
        """The folder of a whole snapshot, and a note that it was used now; None when there is none."""
        folder = self.folder / key
        try:
            note = json.loads((folder / _NOTE).read_text())
            whole = note["files"] == _files(folder)
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            if folder.exists():
                self.discard(key, "it is not whole, or its files were changed")
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder

    def discard(self, key: str, reason: str) -> None:
        """Throw a snapshot away; clones of it that run go on."""
        log.warning("snapshot_discarded", snapshot=key, reason=reason)
        self._remove(self.folder / key)

    def made_at(self, key: str) -> int | None:
        """Return what tells one snapshot of this key from one that is made after it; None when there is none."""
        try:
            return (self.folder / key / _NOTE).stat().st_mtime_ns
        except OSError:
            return None

    async def make(self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp) -> Path | None:
        """Boot, prepare and freeze a machine; returns the folder, or None when another process makes it right now.

        Raises MachineError, HostError, DiskFull; then nothing of it is left.
        """
        key = self.key(hypervisor, image, shape, warm_up_steps)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(self.folder / f"{key}.lock") as mine:
            if not mine:
                return None
            found = self.find(key)
            if found is not None:
                return found
            disk_space_of(self._settings).require_bytes(int(shape.memory_mb * _WRITTEN_SHARE * MB), "a snapshot")
            started = time.monotonic()
            partial = self.folder / f"{key}.partial"
            self._remove(partial)
            partial.mkdir(mode=0o700)
            try:
                try:
                    await self._freeze(hypervisor, image, shape, warm_up_steps, partial)
                except NoClock as error:
                    log.warning("machine_replaced", reason=error.message)
                    await self._freeze(hypervisor, image, shape, warm_up_steps, partial)
                await in_thread(self._note, partial, image, shape, hypervisor)
                partial.rename(self.folder / key)
            finally:
                self._remove(partial)
            await in_thread(self.trim, key)
            log.info("snapshot_made", image=image.name, snapshot=key, seconds=round(time.monotonic() - started, 2))
        return self.folder / key

    async def _freeze(
        self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp, folder: Path
    ) -> None:
        spec = MachineSpec(image=image, shape=shape, script_disk=None)
        seconds = self._settings.boot_timeout_seconds
        async with hypervisor.template(spec, folder) as template:
            preparing = prepare_template(template, warm_up_steps.within(shape.memory_mb), seconds)
            try:
                async with asyncio.timeout(2 * seconds):
                    await run_unless_dead(template, preparing)
            except MachineDead as error:
                raise MachineError(f"the machine that was to be frozen died: {error.message}") from None
            except TimeoutError:
                raise MachineError(f"the machine was not ready to be frozen within {2 * seconds:g} s") from None
            await template.freeze()

    def _note(self, folder: Path, image: Image, shape: Shape, hypervisor: Hypervisor) -> None:
        note = {
            "format": FORMAT,
            "boot": _boot_id(),
            "image": image.name,
            "digest": image.manifest.digest,
            "shape": dataclasses.asdict(shape),
            "hypervisor": f"{hypervisor.name} {hypervisor.version}",
            "accelerator": hypervisor.accelerator,
            "created_at": time.time(),
            "files": _files(folder),
        }
        (folder / _NOTE).write_text(json.dumps(note, indent=2))

    def list(self) -> list[dict[str, object]]:
        """What snapshots there are: image and its digest, shape, hypervisor, when it was made, bytes on the disk."""
        found = []
        for folder in sorted(self.folder.glob("*/")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                note = json.loads((folder / _NOTE).read_text())
                shown = {name: note[name] for name in _SHOWN}
                found.append({"name": folder.name, **shown, "disk_bytes": _disk_bytes(folder)})
        return found

    def trim(self, keep: str | None = None) -> None:
        """Remove what no boot of this host can use any more, then those used longest ago until the budget is kept."""
        budget = self._settings.snapshot_disk_mb << 20
        kept = []
        for folder in self.folder.glob("*/"):
            if folder.name.endswith(".partial"):
                continue
            try:
                note = json.loads((folder / _NOTE).read_text())
                current = note["boot"] == _boot_id() and note["format"] == FORMAT
                kept.append((folder.stat().st_mtime, folder, _disk_bytes(folder)))
            except (OSError, ValueError, KeyError, TypeError):
                current = False
            if not current:
                self._remove(folder)
        kept = [each for each in kept if each[1].exists()]
        total = sum(size for _, _, size in kept)
        for _, folder, size in sorted(kept, key=lambda each: each[0]):
            if total <= budget:
                break
            if folder.name != keep:
                self._remove(folder)
                total -= size
        for lock in self.folder.glob("*.lock"):
            if not lock.with_suffix("").exists():
                with try_lock(lock) as mine:
                    if mine:
                        lock.unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Make the folder, and remove what earlier runs left that nobody can use. Blocks. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.clear_partial()
        self.trim()

    def clear_partial(self) -> None:
        """Remove what a killed process left half-made: what nobody holds the lock of."""
        for partial in self.folder.glob("*.partial"):
            with try_lock(partial.with_suffix(".lock")) as mine:
                if mine:
                    self._remove(partial)

    def _remove(self, folder: Path) -> None:
        # Renamed first, so that nobody finds a folder that is half gone.
        grave = folder.with_name(f"{folder.name}.{os.getpid()}.gone")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(grave)
            shutil.rmtree(grave, ignore_errors=True)


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of each part: what changes when a file does."""
    parts = {}
    for path in sorted(folder.iterdir()):
        if path.name != _NOTE:
            status = path.stat()
            parts[path.name] = [status.st_size, status.st_mtime_ns]
    return parts


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
