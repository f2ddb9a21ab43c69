"""A removed project: its jobs, scripts and keys go in bounded batches, those of others stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.control.jobs.changes import Changes
from belljar.control.maintenance import projects as maintenance
from belljar.control.projects.identity import host_operator
from belljar.control.projects.project_service import ProjectService
from belljar.control.projects.scopes import Role
from belljar.control.scripts.disks import disk_blob
from belljar.control.store import project_removal
from belljar.control.store.keys import SqlKeys
from belljar.control.store.projects import SqlProjects
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.schema import metadata
from belljar.model.errors import NotFound
from belljar.model.quotas import ProjectQuotas
from belljar.model.states import Status
from support.data_folder import Folder, opened
from support.job_queue import queued

JOBS = 130
#: Tables with one row of each project here.
COUNTERS = ("project_quotas", "project_usage", "project_counters", "node_counters")


async def removed(folder: Folder, name: str) -> None:
    keys = SqlKeys(folder.database)
    service = ProjectService(SqlProjects(folder.database), keys, Changes())
    await service.remove(host_operator(), name)


async def ended_jobs(folder: Folder, project: str) -> list[str]:
    """Store ended jobs with blobs; return their ids. Nothing may be queued: a claim takes what is."""
    return [(await folder.end(status, 1, project=project)).id for status in (Status.SUCCEEDED, Status.FAILED)]


async def filled(folder: Folder, project: str) -> list[str]:
    """Fill a project with ended and queued jobs, scripts and keys; return the ids of ended jobs with blobs."""
    ids = await ended_jobs(folder, project)
    await fill(folder, project)
    return ids


async def fill(folder: Folder, project: str) -> None:
    """Add queued jobs, scripts and keys."""
    for _ in range(JOBS):
        await folder.jobs.insert(queued(project=project, labels={"a": "b"}))
    await folder.script("a" * 64, project)
    await folder.script(("b" if project == "gone" else "c") * 64, project)
    for number in range(3):
        await SqlKeys(folder.database).create(project, f"k{number}", role=Role.MEMBER)


async def test_the_data_of_a_removed_project_goes_and_that_of_others_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "KEEP_SECONDS", 0.0)
    async with opened(tmp_path) as folder:
        gone, kept = await ended_jobs(folder, "gone"), await ended_jobs(folder, "kept")
        for project in ("gone", "kept"):
            await fill(folder, project)
            await SqlQuotas(folder.database).set(project, ProjectQuotas(max_running_jobs=5))
        await removed(folder, "gone")
        dry = (await folder.sweep(dry_run=True))["projects"].result
        assert "gone" in dry.findings[0] and await folder.jobs.get("gone", gone[0]) is not None
        (ends,) = folder.sql("SELECT count(*) FROM job_ends WHERE project = 'gone'")[0]
        cancelled = 1  # one more row: the queued ones end so
        outcome = (await folder.sweep())["projects"].result
        assert outcome.removed.count == JOBS + 2 + 2 + 3 + ends + cancelled + len(COUNTERS)
        assert [folder.bytes_of(job_id) for job_id in gone] == [[], []]
        for table in ("jobs", "job_labels", "job_ends", "scripts", "keys", *COUNTERS):
            (left,) = folder.sql(f"SELECT count(*) FROM {table} WHERE project = 'gone'")[0]
            (others,) = folder.sql(f"SELECT count(*) FROM {table} WHERE project = 'kept'")[0]
            assert (left, others > 0) == (0, True), table
        assert folder.sql("SELECT name FROM projects WHERE name IN ('gone', 'kept')") == [("kept",)]
        assert all(folder.bytes_of(job_id) for job_id in kept)
        # The script that both had stays for the other; the one that only the removed project had goes.
        assert await folder.blobs.size(disk_blob("a" * 64)) and await folder.blobs.size(disk_blob("c" * 64))
        assert await folder.blobs.size(disk_blob("b" * 64)) is None
        assert folder.sql("SELECT count(*) FROM removed_jobs") == [(0,)]


async def test_the_record_stays_while_an_upload_may_still_end(tmp_path: Path) -> None:
    async with opened(tmp_path) as folder:
        await filled(folder, "gone")
        await removed(folder, "gone")
        await folder.sweep()
        assert (await SqlProjects(folder.database).get("gone")).removed_at is not None
        folder.sql("UPDATE projects SET removed_at = removed_at - 7300 * 1000000")
        await folder.sweep()
        with pytest.raises(NotFound):
            await SqlProjects(folder.database).get("gone")


async def test_work_is_done_in_bounded_transactions_and_a_killed_run_is_continued(tmp_path: Path) -> None:
    async with opened(tmp_path) as folder:
        await filled(folder, "gone")
        await removed(folder, "gone")
        removal = project_removal.SqlProjectRemoval(folder.database)
        assert [(await removal.cancel_jobs("gone", 50)).rows for _ in range(4)] == [50, 50, 30, 0]
        assert (await removal.remove_jobs("gone", 50)).rows == 50
        await removal.finish("gone", maintenance.datetime.now(maintenance.UTC))
        assert (await SqlProjects(folder.database).get("gone")).removed_at  # nothing is left behind a record
        await folder.sweep()
        assert folder.sql("SELECT count(*) FROM jobs") == [(0,)]


def test_every_table_with_a_column_project_is_removed_or_kept_on_purpose() -> None:
    lists = (project_removal.PLAIN_TABLES, project_removal.TABLES_WITH_BLOBS, project_removal.KEPT_TABLES)
    listed = [table.name for tables in lists for table in tables]
    assert len(listed) == len(set(listed))
    owned = {table.name for table in metadata.tables.values() if "project" in table.c}
    assert set(listed) == owned, "add the table to a list of store/project_removal.py"
    assert all("project" in table.c for table in project_removal.PLAIN_TABLES)
