"""Removes blobs without a record, and reports records without a blob.

A blob is written before its record and removed after it, so a process that is killed in between leaves an orphan, never
a record without its blob. A young blob may be about to get its record. A new database beside old blobs must not cost
them at once: nothing is deleted before the period has passed since this service first ran on this database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime

from belljar.control.blobs.store import BlobInfo, Blobs
from belljar.control.maintenance.scripts import missing_scripts
from belljar.control.scripts.script_lock import script_lock
from belljar.control.store.retention import SqlRetention
from belljar.model.ids import is_job_id
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord, cutoff
from belljar.system.removal import Extent

_EMPTY_FOLDER_SECONDS = 3600.0
_MAX_NAMED_SCRIPTS = 3


class OrphanCleaner:
    """Removes blobs below `jobs/` and `scripts/` without a job or script, and files of unfinished puts."""

    name = "orphans"
    interval_seconds = 24 * 3600.0

    def __init__(self, settings: Settings, retention: SqlRetention, blobs: Blobs) -> None:
        self._settings = settings
        self._retention = retention
        self._blobs = blobs

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the blobs. Raises HostError, OSError."""
        findings = []
        missing = await missing_scripts(self._retention, self._blobs)
        if missing:
            names = ", ".join(script.id[:12] for script in missing[:_MAX_NAMED_SCRIPTS])
            findings.append(f"{len(missing)} scripts have no blob and must be uploaded again: {names}")
        keep_days = self._settings.keep_orphan_blobs_days
        before = cutoff(keep_days)
        if before is None:
            return MaintenanceResult(findings=tuple(findings))
        is_new_database = record.first_run_at > before
        only_count = dry_run or is_new_database
        removed = await self._remove_of_jobs(before, only_count) + await self._remove_of_scripts(before, only_count)
        if removed.count and is_new_database:
            findings.append(
                f"{removed.count} blobs have no record in this database; they are deleted once it is older than "
                f"keep_orphan_blobs_days ({keep_days:g})"
            )
            removed = Extent()
        if not dry_run:
            removed += Extent(await asyncio.to_thread(self._blobs.clear_stale_puts))
            await self._blobs.remove_empty_folders(_EMPTY_FOLDER_SECONDS)
        return MaintenanceResult(removed=removed, findings=tuple(findings))

    async def _remove_of_jobs(self, before: datetime, only_count: bool) -> Extent:
        extent = Extent()
        async for page in self._blobs.pages("jobs"):
            old = _older(page, before)
            known = await self._retention.known_jobs({_owner(info) for info in old if is_job_id(_owner(info))})
            orphans = [info for info in old if _owner(info) not in known]
            if not only_count:
                await self._blobs.delete_all([info.name for info in orphans])
            extent += _extent(orphans)
        return extent

    async def _remove_of_scripts(self, before: datetime, only_count: bool) -> Extent:
        extent = Extent()
        async for page in self._blobs.pages("scripts"):
            old = {_owner(info).removesuffix(".erofs"): info for info in _older(page, before)}
            needed = await self._retention.needed_scripts(old)
            orphans = {script_id: info for script_id, info in old.items() if script_id not in needed}
            if not only_count:
                for script_id, info in orphans.items():
                    await self._delete_script(script_id, info)
            extent += _extent(orphans.values())
        return extent

    async def _delete_script(self, script_id: str, info: BlobInfo) -> None:
        """Check again under the lock, since the script may have been uploaded meanwhile, and delete."""
        async with script_lock(self._settings.data_dir, script_id):
            if not await self._retention.needed_scripts([script_id]):
                await self._blobs.delete(info.name)


def _older(page: list[BlobInfo], before: datetime) -> list[BlobInfo]:
    return [info for info in page if info.modified_at < before]


def _owner(info: BlobInfo) -> str:
    """Return the second part of a blob's name: the id of a job, or the file of a script."""
    return info.name.split("/")[1]


def _extent(infos: Collection[BlobInfo]) -> Extent:
    return Extent(len(infos), sum(info.size_bytes for info in infos))
