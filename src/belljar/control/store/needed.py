"""Which images the jobs of a data folder need, for whoever deletes images there."""

from __future__ import annotations

from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.settings.storage import StorageSettings


async def needed_images(settings: StorageSettings) -> set[str]:
    """Digests of the images of jobs that have not ended. Raises DataFolderError, HostError: then delete nothing."""
    if settings.database_url is None and not settings.paths.database.exists():
        return set()  # no server has been here yet
    database = await open_database(settings, migrate=False)
    try:
        return await SqlJobs(database).image_digests()
    finally:
        await database.close()
