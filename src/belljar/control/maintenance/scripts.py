"""Removes scripts that no job uses and that were not uploaded again for a long time."""

from __future__ import annotations

from belljar.control.blobs.store import Blobs
from belljar.control.scripts.disks import disk_blob
from belljar.control.scripts.script_lock import script_lock
from belljar.control.store.retention import ScriptKey, SqlRetention
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceResult, ServiceRecord, cutoff
from belljar.system.removal import Extent

_PAGE = 200


class ScriptCleaner:
    """Removes unused scripts: first the record, then the blob, if no other project and no job needs it.

    It holds the script's lock, so that no upload comes between the two. A blob that a killed process left has no record
    and is removed as an orphan.
    """

    name = "scripts"
    interval_seconds = 3600.0

    def __init__(self, settings: Settings, retention: SqlRetention, blobs: Blobs) -> None:
        self._settings = settings
        self._retention = retention
        self._blobs = blobs

    async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
        """Remove the scripts. Raises HostError."""
        before = cutoff(self._settings.keep_unused_scripts_days)
        if before is None:
            return MaintenanceResult()
        removed, after = Extent(), None
        while page := await self._retention.unused_scripts(before, after, _PAGE):
            for script in page:
                size = await self._blobs.size(disk_blob(script.id)) or 0
                if dry_run:
                    removed += Extent(1, size)
                    continue
                async with script_lock(self._settings.data_dir, script.id):
                    was_last = await self._retention.remove_unused_script(script, before)
                    if was_last:
                        await self._blobs.delete(disk_blob(script.id))
                removed += Extent(1, size if was_last else 0)
            after = page[-1]
        return MaintenanceResult(removed=removed)


async def missing_scripts(retention: SqlRetention, blobs: Blobs) -> list[ScriptKey]:
    """Return the records of scripts whose blob is missing: their jobs would fail."""
    missing: list[ScriptKey] = []
    after = None
    while page := await retention.scripts_after(after, _PAGE):
        missing += [script for script in page if not await blobs.size(disk_blob(script.id))]
        after = page[-1]
    return missing
