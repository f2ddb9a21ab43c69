"""Removes blobs that no record names, and tells of records whose blob is missing.

A blob comes before its record and goes after it, so a process that is killed in between leaves an orphan, never a
record without its blob. What is young may be about to get its record. And a database that begins anew beside old blobs
must not cost them at once: nothing is deleted before the period has passed since this service first ran on this
database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime

from belljar.control.blobs.store import BlobInfo
from belljar.control.maintenance.scripts import missing_scripts
from belljar.control.maintenance.service import Context, Result
from belljar.control.scripts.script_lock import script_lock
from belljar.control.store.maintenance import ServiceRun
from belljar.model.ids import is_job_id
from belljar.system.removal import Extent

_EMPTY_FOLDER_SECONDS = 3600.0
_TOLD = 3


class OrphanCleaner:
    """Blobs below `jobs/` and `scripts/` whose job or script there is not, and what is left of unfinished puts."""

    name = "orphans"
    every_seconds = 24 * 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        findings = []
        missing = await missing_scripts(context)
        if missing:
            names = ", ".join(script.id[:12] for script in missing[:_TOLD])
            findings.append(f"{len(missing)} scripts have no blob and must be uploaded again: {names}")
        before = context.before(context.settings.keep_orphan_blobs_days)
        if before is None:
            return Result(findings=tuple(findings))
        found = await self._of_jobs(context, before, record) + await self._of_scripts(context, before, record)
        if found.count and record.first_run_at > before:
            findings.append(
                f"{found.count} blobs have no record in this database; they are deleted once it is older than "
                f"keep_orphan_blobs_days ({context.settings.keep_orphan_blobs_days:g})"
            )
            found = Extent()
        if not context.dry_run:
            found += Extent(await asyncio.to_thread(context.blobs.clear_stale_puts))
            await context.blobs.remove_empty_folders(_EMPTY_FOLDER_SECONDS)
        return Result(removed=found, findings=tuple(findings))

    async def _of_jobs(self, context: Context, before: datetime, record: ServiceRun) -> Extent:
        found = Extent()
        async for page in context.blobs.pages("jobs"):
            old = _older(page, before)
            known = await context.retention.known_jobs({_part(info) for info in old if is_job_id(_part(info))})
            orphans = [info for info in old if _part(info) not in known]
            if not context.dry_run and record.first_run_at <= before:
                await context.blobs.delete_all([info.name for info in orphans])
            found += _extent(orphans)
        return found

    async def _of_scripts(self, context: Context, before: datetime, record: ServiceRun) -> Extent:
        found = Extent()
        async for page in context.blobs.pages("scripts"):
            old = {_part(info).removesuffix(".erofs"): info for info in _older(page, before)}
            needed = await context.retention.needed_scripts(old)
            orphans = {script_id: info for script_id, info in old.items() if script_id not in needed}
            if not context.dry_run and record.first_run_at <= before:
                for script_id, info in orphans.items():
                    await self._delete_script(context, script_id, info)
            found += _extent(orphans.values())
        return found

    async def _delete_script(self, context: Context, script_id: str, info: BlobInfo) -> None:
        """Look once more under the lock: it may have been uploaded meanwhile."""
        async with script_lock(context.settings.data_dir, script_id):
            if not await context.retention.needed_scripts([script_id]):
                await context.blobs.delete(info.name)


def _older(page: list[BlobInfo], before: datetime) -> list[BlobInfo]:
    return [info for info in page if info.modified_at < before]


def _part(info: BlobInfo) -> str:
    """The second part of a blob's name: a job's id, or the file of a script."""
    return info.name.split("/")[1]


def _extent(infos: Collection[BlobInfo]) -> Extent:
    return Extent(len(infos), sum(info.size_bytes for info in infos))
