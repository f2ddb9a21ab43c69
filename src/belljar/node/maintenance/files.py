"""The maintenance services of a node, one for each kind of file."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

from belljar.images.catalog import Images
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, MaintenanceService, ServiceRecord
from belljar.system.old_files import DAY_SECONDS, extent_of_files, extent_of_folder, older_than, unused
from belljar.system.removal import Extent, remove_folders
from belljar.system.temp_folders import remove_abandoned

#: An attempt may take this much longer than its timeout, for its machine and its artifacts.
_ATTEMPT_SLACK_SECONDS = DAY_SECONDS
#: How long a node remembers how a script ended whose job was given to another attempt.
_END_SECONDS = 30 * DAY_SECONDS


def node_services(settings: Settings) -> list[MaintenanceService]:
    """Return the services for the files of the node that works in this data folder."""
    return [
        LeftoverCleaner(settings),
        SnapshotCleaner(settings),
        LayerCleaner(settings),
        BuildCacheCleaner(settings),
    ]


class _FileCleaner(ABC):
    """A service that removes files in a thread."""

    interval_seconds = 3600.0

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = settings.paths

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove what is past its period. Raises OSError."""
        return MaintenanceResult(removed=await asyncio.to_thread(self._remove, dry_run))

    @abstractmethod
    def _remove(self, dry_run: bool) -> Extent: ...


class LeftoverCleaner(_FileCleaner):
    """Removes folders of local runs whose process died, transfers of artifacts that never ended, and noted ends."""

    name = "leftovers"

    def _remove(self, dry_run: bool) -> Extent:
        seconds = self._settings.max_timeout_seconds + _ATTEMPT_SLACK_SECONDS
        files = older_than((path for path in self._paths.artifacts.glob("*") if path.is_file()), seconds)
        files += older_than(self._paths.outcomes.glob("*"), _END_SECONDS)
        extent = extent_of_files(files)
        if dry_run:
            return extent
        for path in files:
            path.unlink(missing_ok=True)
        return extent + Extent(remove_abandoned(self._paths.local_runs))


class SnapshotCleaner(_FileCleaner):
    """Removes snapshots that were not cloned lately, and those from before the host's last boot."""

    name = "snapshots"

    def _remove(self, dry_run: bool) -> Extent:
        snapshots = Snapshots(self._settings)
        old = unused(snapshots.folder.glob("*/"), self._settings.keep_unused_snapshots_days)
        old = [folder for folder in old if not folder.name.endswith((".partial", ".gone"))]
        size_bytes = sum(extent_of_folder(folder).size_bytes for folder in old)
        if not dry_run:
            for folder in old:
                snapshots.discard(folder.name, "it has not been used for long")
            snapshots.clear_partial()
            snapshots.evict()
        return Extent(len(old), size_bytes)


class LayerCleaner(_FileCleaner):
    """Removes installed packages that no job has used lately."""

    name = "layers"

    def _remove(self, dry_run: bool) -> Extent:
        folder, days = self._paths.layers, self._settings.keep_unused_layers_days
        disks = unused((*folder.glob("*.erofs"), *(folder / "laid").glob("*.erofs")), days)
        extent = extent_of_files(disks)
        if not dry_run:
            for disk in disks:
                disk.unlink(missing_ok=True)
                disk.with_suffix(".json").unlink(missing_ok=True)
            self._remove_dangling_notes(folder)
        return extent

    def _remove_dangling_notes(self, folder: Path) -> None:
        """Remove the notes that map requirements to packages which are not installed any more."""
        for note in (folder / "wanted").glob("[!.]*"):
            with suppress(OSError, UnicodeDecodeError):
                if not (folder / f"{note.read_text()}.erofs").exists():
                    note.unlink()


class BuildCacheCleaner(_FileCleaner):
    """Removes downloads and logs of image builds, and folders of killed builds, while no build runs."""

    name = "build_cache"

    def _remove(self, dry_run: bool) -> Extent:
        paths, days = self._paths, self._settings.keep_build_cache_days
        if not paths.cache.is_dir():
            return Extent()
        with Images(paths.root).blobs.exclude_builds() as may_delete:
            if not may_delete:
                return Extent()
            files = unused((*paths.apt_cache.glob("*/debs/*"), *paths.build_logs.glob("*")), days)
            folders = [path for path in paths.cache.glob("build-*") if path.is_dir() and not path.is_symlink()]
            extent = extent_of_files(files) + sum(map(extent_of_folder, folders), Extent())
            if not dry_run:
                for path in files:
                    path.unlink(missing_ok=True)
                remove_folders(folders)
        return extent
