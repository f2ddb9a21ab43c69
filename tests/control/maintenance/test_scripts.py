"""Unused scripts are removed; those that a job needs are kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from belljar.control.scripts.disks import disk_blob
from belljar.control.scripts.script_lock import script_lock
from belljar.model.errors import HostError
from belljar.model.states import Status
from support.data_folder import SCRIPT, Folder, days_ago
from support.job_queue import queued


async def test_a_script_that_was_not_used_for_long_is_removed(folder: Folder) -> None:
    await folder.script("1" * 64, days=100)
    await folder.script("2" * 64, days=80)
    removed = (await folder.sweep())["scripts"].result.removed
    assert (removed.count, removed.size_bytes) == (1, 4)
    assert folder.sql("SELECT id FROM scripts") == [("2" * 64,)]
    assert await folder.blobs.size(disk_blob("1" * 64)) is None
    assert await folder.blobs.size(disk_blob("2" * 64)) == 4


async def test_a_blob_stays_while_another_project_has_the_script(folder: Folder) -> None:
    await folder.script(days=100, project="mine")
    await folder.script(days=10, project="yours")
    await folder.sweep()
    assert folder.sql("SELECT project FROM scripts") == [("yours",)]
    assert await folder.blobs.size(disk_blob(SCRIPT)) == 4


async def test_a_script_stays_while_there_is_a_job_of_it(folder: Folder) -> None:
    await folder.script(days=1000)
    await folder.end(Status.SUCCEEDED, 1000, script_id=SCRIPT)
    await folder.sweep(keep_succeeded_jobs_days=0)
    assert await folder.blobs.size(disk_blob(SCRIPT)) == 4


async def test_removed_jobs_count_as_uses_of_their_script(folder: Folder) -> None:
    await folder.script(days=1000)
    await folder.end(Status.SUCCEEDED, 60, script_id=SCRIPT)
    outcomes = await folder.sweep()
    assert outcomes["jobs"].result.removed.count == 1
    assert folder.sql("SELECT id FROM scripts") == [(SCRIPT,)]
    folder.sql("UPDATE scripts SET used_at = ?", int(days_ago(91).timestamp() * 1e6))
    await folder.sweep()
    assert folder.sql("SELECT id FROM scripts") == []


async def test_uploading_a_script_again_is_a_use(folder: Folder) -> None:
    script = await folder.script(days=1000)
    assert await folder.script(days=0) == script
    await folder.sweep()
    assert folder.sql("SELECT id FROM scripts") == [(SCRIPT,)]


async def test_the_blob_of_a_deleted_script_is_removed_after_its_last_job(folder: Folder) -> None:
    await folder.script()
    job = await folder.jobs.insert(queued(script_id=SCRIPT))
    await folder.scripts.delete("mine", SCRIPT)
    folder.sql("INSERT INTO maintenance VALUES ('orphans', 0, 0, NULL, 0, 0, 0, NULL, NULL)")
    await folder.sweep(keep_orphan_blobs_days=1e-9)
    assert await folder.blobs.size(disk_blob(SCRIPT)) == 4
    await folder.jobs.cancel("mine", job.id)
    await folder.sweep(keep_orphan_blobs_days=1e-9)
    assert await folder.blobs.size(disk_blob(SCRIPT)) is None


async def test_a_script_that_is_being_uploaded_is_waited_for(folder: Folder) -> None:
    await folder.script(days=100)
    async with script_lock(folder.path, SCRIPT):
        sweeping = asyncio.create_task(folder.sweep())
        await asyncio.wait([sweeping], timeout=0.3)
        assert not sweeping.done()
        await folder.script(days=0)  # the upload ends: the record is used now
    assert (await sweeping)["scripts"].result.removed.size_bytes == 0
    assert await folder.blobs.size(disk_blob(SCRIPT)) == 4


async def test_one_holds_a_scripts_lock_at_a_time_and_others_those_of_other_scripts(tmp_path: Path) -> None:
    async with script_lock(tmp_path, "a"), script_lock(tmp_path, "b"):
        with pytest.raises(HostError, match="in use"):
            async with script_lock(tmp_path, "a", wait_seconds=0.05):
                pass
    async with script_lock(tmp_path, "a", wait_seconds=0.05):
        pass


async def test_a_record_without_its_blob_is_reported_and_kept(folder: Folder) -> None:
    await folder.script(days=1)
    await folder.blobs.delete(disk_blob(SCRIPT))
    findings = (await folder.sweep())["orphans"].result.findings
    assert findings == (f"1 scripts have no blob and must be uploaded again: {SCRIPT[:12]}",)
    assert folder.sql("SELECT id FROM scripts") == [(SCRIPT,)]


async def test_a_lock_whose_file_cannot_be_opened_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "run/scripts.lock").mkdir(parents=True)
    with pytest.raises(HostError, match="cannot open the file of the scripts' locks"):
        async with script_lock(tmp_path, "a"):
            pass
