"""Removes files of the data folder that nothing has used for long: snapshots, installed packages, caches, backups.

Each kind is removed under the lock that its makers hold, or only when it is too old to be in use.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from belljar.control.maintenance.service import Context, Result
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.maintenance import ServiceRun
from belljar.control.store.opening import database_path
from belljar.images.catalog import Images
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.system.removal import Extent, remove_folders

_DAY_SECONDS = 86_400.0


class SnapshotCleaner:
    """Snapshots that no machine was cloned from lately, and those of before the host's last boot."""

    name = "snapshots"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        return Result(removed=await asyncio.to_thread(self._run, context))

    def _run(self, context: Context) -> Extent:
        snapshots = Snapshots(context.settings)
        old = _unused(snapshots.folder.glob("*/"), context.settings.keep_unused_snapshots_days)
        old = [folder for folder in old if not folder.name.endswith((".partial", ".gone"))]
        found = sum((_extent_of_folder(folder) for folder in old), Extent())
        if not context.dry_run:
            for folder in old:
                snapshots.discard(folder.name, "it has not been used for long")
            snapshots.clear_partial()
            snapshots.trim()
        return Extent(len(old), found.size_bytes)


class LayerCleaner:
    """Installed packages that no job has used lately."""

    name = "layers"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        return Result(removed=await asyncio.to_thread(self._run, context))

    def _run(self, context: Context) -> Extent:
        folder, days = context.settings.data_dir / "layers", context.settings.keep_unused_layers_days
        disks = _unused((*folder.glob("*.erofs"), *(folder / "laid").glob("*.erofs")), days)
        found = _extent_of_files(disks)
        if not context.dry_run:
            for disk in disks:
                disk.unlink(missing_ok=True)
                disk.with_suffix(".json").unlink(missing_ok=True)
            self._forget_wishes(folder)
        return found

    def _forget_wishes(self, folder: Path) -> None:
        """Remove the notes of what wishes came to, where that is gone."""
        for note in (folder / "wanted").glob("[!.]*"):
            with suppress(OSError, UnicodeDecodeError):
                if not (folder / f"{note.read_text()}.erofs").exists():
                    note.unlink()


class BuildCacheCleaner:
    """What builds of images downloaded and wrote down, while no build is under way; folders of killed builds."""

    name = "build_cache"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        return Result(removed=await asyncio.to_thread(self._run, context))

    def _run(self, context: Context) -> Extent:
        cache, days = context.settings.data_dir / "cache", context.settings.keep_build_cache_days
        if not cache.is_dir():
            return Extent()
        with Images(context.settings.data_dir).blobs.exclude_builds() as may_delete:
            if not may_delete:
                return Extent()
            files = _unused((*cache.glob("apt/*/debs/*"), *cache.glob("logs/*")), days)
            left = [path for path in cache.glob("build-*") if path.is_dir() and not path.is_symlink()]
            found = _extent_of_files(files) + sum((_extent_of_folder(folder) for folder in left), Extent())
            if not context.dry_run:
                for path in files:
                    path.unlink(missing_ok=True)
                remove_folders(left)
        return found


class ImageCleaner:
    """Images without a name that no job needs which has not ended."""

    name = "images"
    every_seconds = 3600.0

    def __init__(self, jobs: SqlJobs) -> None:
        self._jobs = jobs

    async def run(self, context: Context, record: ServiceRun) -> Result:
        images = Images(context.settings.data_dir)
        unnamed = await asyncio.to_thread(images.unnamed)
        needed = await self._jobs.image_digests()
        old = [manifest for manifest in unnamed if manifest.digest not in needed]
        if not old:
            return Result()
        if context.dry_run:
            return Result(removed=Extent(len(old), sum(manifest.size_bytes for manifest in old)))
        return Result(removed=Extent(len(old), await asyncio.to_thread(images.collect, needed)))


class BackupCleaner:
    """Backups of the database, but for the newest; halves of those that were not finished."""

    name = "backups"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        return Result(removed=await asyncio.to_thread(self._run, context))

    def _run(self, context: Context) -> Extent:
        database = database_path(context.settings)
        found_backups = sorted(database.parent.glob(f"{database.name}.backup-*"), key=_mtime)
        killed = [path for path in found_backups if path.name.endswith(".partial")]
        whole = [path for path in found_backups if path not in killed]
        old = older_than(killed, _DAY_SECONDS) + _unused(whole[:-1], context.settings.keep_backups_days)
        found = _extent_of_files(old)
        if not context.dry_run:
            for path in old:
                path.unlink(missing_ok=True)
        return found


def older_than(paths: Iterable[Path], seconds: float) -> list[Path]:
    """Those of these files and folders that were changed longer ago; what is gone meanwhile is not among them."""
    oldest = time.time() - seconds
    return [path for path in paths if _mtime(path) < oldest]


def _unused(paths: Iterable[Path], days: float) -> list[Path]:
    return older_than(paths, days * _DAY_SECONDS) if days else []


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def _extent_of_files(paths: Iterable[Path]) -> Extent:
    found = Extent()
    for path in paths:
        with suppress(OSError):
            found += Extent(1, path.lstat().st_size)
    return found


def _extent_of_folder(folder: Path) -> Extent:
    """The files below a folder, and the disk that they take: most are sparse."""
    found = Extent()
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                found += Extent(1, Path(root, name).lstat().st_blocks * 512)
    return found
