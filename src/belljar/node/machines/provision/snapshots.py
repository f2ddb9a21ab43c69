"""Snapshots on this host's disk: made once, found by key, kept within a budget, discarded when they may be damaged.

A snapshot is a folder, written under another name and renamed when it is complete, so an interrupted one is never used.
Its key covers everything that it depends on: image, shape, hypervisor, warm-up, this boot of the host. The folder is
private (mode 0700); the sizes and times of its files show whether they are unchanged.
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
from belljar.node.machines.provision.warm_up import WarmUp, prepare_snapshot_source
from belljar.node.machines.racing import MachineDead, run_unless_dead
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.counters import increment
from belljar.system.disk_space import MB
from belljar.system.file_locks import try_lock

log = structlog.get_logger()

FORMAT = 1
_METADATA = "snapshot.json"
#: The share of its memory that a machine has usually written, at most, when it is frozen: the file is sparse.
_WRITTEN_SHARE = 0.5
_LISTED_FIELDS = ("image", "digest", "shape", "hypervisor", "accelerator", "created_at")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Snapshots:
    """The snapshots of one data folder; several workers may share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.folder = settings.paths.snapshots

    @property
    def boot_timeout_seconds(self) -> float:
        """Return the time that a machine may take to boot on this host."""
        return self._settings.boot_timeout_seconds

    def key(self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp) -> str:
        """Return the name of the snapshot with exactly these properties."""
        manifest = image.manifest
        parts = [
            FORMAT,
            hypervisor.name,
            hypervisor.accelerator,
            hypervisor.identity,
            [blob.sha256 for blob in (manifest.kernel, manifest.initramfs, manifest.root)],
            dataclasses.astuple(shape),
            warm_up_steps.fingerprint(),
            _boot_id(),
        ]
        # Sorted: a manifest that was just built has its variables in another order than one that was read.
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    def find(self, key: str) -> Path | None:
        """Return the folder of a complete snapshot, and mark it as used now; None when there is none."""
        folder = self.folder / key
        try:
            metadata = json.loads((folder / _METADATA).read_text())
            is_complete = metadata["files"] == _file_stats(folder)
        except (OSError, ValueError, KeyError, TypeError):
            is_complete = False
        if not is_complete:
            if folder.exists():
                self.discard(key, "it is incomplete, or its files were changed")
            return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return folder

    def discard(self, key: str, reason: str) -> None:
        """Remove a snapshot; running clones of it continue."""
        log.warning("snapshot_discarded", snapshot=key, reason=reason)
        self._remove(self.folder / key)

    def made_at(self, key: str) -> int | None:
        """Return when the snapshot was made, in nanoseconds: a later one of the same key differs. None without one."""
        try:
            return (self.folder / key / _METADATA).stat().st_mtime_ns
        except OSError:
            return None

    async def make(self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp) -> Path | None:
        """Boot, warm up and freeze a machine; return the folder, or None while another process makes the same.

        Raises MachineError, HostError, DiskFull; then nothing is left of it.
        """
        key = self.key(hypervisor, image, shape, warm_up_steps)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(self.folder / f"{key}.lock") as locked:
            if not locked:
                return None
            existing = self.find(key)
            if existing is not None:
                return existing
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
                await in_thread(self._write_metadata, partial, image, shape, hypervisor)
                partial.rename(self.folder / key)
            finally:
                self._remove(partial)
            await in_thread(self.evict, key)
            log.info("snapshot_made", image=image.name, snapshot=key, seconds=round(time.monotonic() - started, 2))
        return self.folder / key

    async def _freeze(
        self, hypervisor: Hypervisor, image: Image, shape: Shape, warm_up_steps: WarmUp, folder: Path
    ) -> None:
        spec = MachineSpec(image=image, shape=shape, script_disk=None)
        seconds = self._settings.boot_timeout_seconds
        async with hypervisor.snapshot_source(spec, folder) as source:
            preparation = prepare_snapshot_source(source, warm_up_steps.within(shape.memory_mb), seconds)
            try:
                async with asyncio.timeout(2 * seconds):
                    await run_unless_dead(source, preparation)
            except MachineDead as error:
                raise MachineError(f"the machine to be frozen died: {error.message}") from None
            except TimeoutError:
                raise MachineError(f"the machine was not ready to be frozen within {2 * seconds:g} s") from None
            await source.freeze()

    def _write_metadata(self, folder: Path, image: Image, shape: Shape, hypervisor: Hypervisor) -> None:
        metadata = {
            "format": FORMAT,
            "boot": _boot_id(),
            "image": image.name,
            "digest": image.manifest.digest,
            "shape": dataclasses.asdict(shape),
            "hypervisor": f"{hypervisor.name} {hypervisor.version}",
            "accelerator": hypervisor.accelerator,
            "created_at": time.time(),
            "files": _file_stats(folder),
        }
        (folder / _METADATA).write_text(json.dumps(metadata, indent=2))

    def list(self) -> list[dict[str, object]]:
        """Return image and digest, shape, hypervisor, time of making and bytes on the disk of each snapshot."""
        snapshots = []
        for folder in sorted(self.folder.glob("*/")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                metadata = json.loads((folder / _METADATA).read_text())
                fields = {name: metadata[name] for name in _LISTED_FIELDS}
                snapshots.append({"name": folder.name, **fields, "disk_bytes": _disk_bytes(folder)})
        return snapshots

    def evict(self, keep: str | None = None) -> None:
        """Remove unusable snapshots, then the least recently used except `keep` until the budget holds."""
        budget = self._settings.snapshot_disk_mb << 20
        kept = []
        for folder in self.folder.glob("*/"):
            if folder.name.endswith(".partial"):
                continue
            try:
                metadata = json.loads((folder / _METADATA).read_text())
                is_current = metadata["boot"] == _boot_id() and metadata["format"] == FORMAT
                kept.append((folder.stat().st_mtime, folder, _disk_bytes(folder)))
            except (OSError, ValueError, KeyError, TypeError):
                is_current = False
            if not is_current:
                self._remove(folder)
        kept = [each for each in kept if each[1].exists()]
        total = sum(size for _, _, size in kept)
        for _, folder, size in sorted(kept, key=lambda each: each[0]):
            if total <= budget:
                break
            if folder.name != keep:
                self._remove(folder)
                increment("belljar_evictions", kind="snapshot")
                total -= size
        for lock in self.folder.glob("*.lock"):
            if not lock.with_suffix("").exists():
                with try_lock(lock) as locked:
                    if locked:
                        lock.unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Make the folder, and remove unusable and interrupted snapshots of earlier runs. Blocks. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.clear_partial()
        self.evict()

    def clear_partial(self) -> None:
        """Remove the incomplete snapshots of killed processes: those that no process holds the lock of."""
        for partial in self.folder.glob("*.partial"):
            with try_lock(partial.with_suffix(".lock")) as locked:
                if locked:
                    self._remove(partial)

    def _remove(self, folder: Path) -> None:
        # Renamed first, so that no process finds a folder that is partly removed.
        removed = folder.with_name(f"{folder.name}.{os.getpid()}.gone")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def _file_stats(folder: Path) -> dict[str, list[int]]:
    """Return size and modification time of each file, which change when the file does."""
    stats = {}
    for path in sorted(folder.iterdir()):
        if path.name != _METADATA:
            status = path.stat()
            stats[path.name] = [status.st_size, status.st_mtime_ns]
    return stats


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
