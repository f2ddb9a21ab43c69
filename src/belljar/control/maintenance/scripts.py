"""Removes scripts that no job uses and that nobody has uploaded again for a long time."""

from __future__ import annotations

from belljar.control.maintenance.service import Context, Result
from belljar.control.scripts.disks import disk_blob
from belljar.control.scripts.script_lock import script_lock
from belljar.control.store.maintenance import ServiceRun
from belljar.control.store.retention import ScriptKey
from belljar.system.removal import Extent

_PAGE = 200


class ScriptCleaner:
    """Unused scripts: first the record, then the blob, if no other project and no job needs it.

    Each under the script's lock: nobody uploads it between the two. A blob that a killed process left behind has no
    record any more, and goes as an orphan.
    """

    name = "scripts"
    every_seconds = 3600.0

    async def run(self, context: Context, record: ServiceRun) -> Result:
        before = context.before(context.settings.keep_unused_scripts_days)
        if before is None:
            return Result()
        removed, after = Extent(), None
        while page := await context.retention.unused_scripts(before, after, _PAGE):
            for script in page:
                size = await context.blobs.size(disk_blob(script.id)) or 0
                if context.dry_run:
                    removed += Extent(1, size)
                    continue
                async with script_lock(context.settings.data_dir, script.id):
                    last = await context.retention.remove_unused_script(script, before)
                    if last:
                        await context.blobs.delete(disk_blob(script.id))
                removed += Extent(1, size if last else 0)
            after = page[-1]
        return Result(removed=removed)


async def missing_scripts(context: Context) -> list[ScriptKey]:
    """Records of scripts whose blob is not there: their jobs would fail."""
    missing: list[ScriptKey] = []
    after = None
    while page := await context.retention.scripts_after(after, _PAGE):
        missing += [script for script in page if not await context.blobs.size(disk_blob(script.id))]
        after = page[-1]
    return missing
