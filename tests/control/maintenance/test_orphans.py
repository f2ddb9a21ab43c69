"""Blobs without a record: left by a process that was killed between the two."""

from __future__ import annotations

import os
import time

import pytest

from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.scripts.disks import disk_blob
from belljar.model.ids import new_id
from belljar.model.states import Status
from support.data_folder import SCRIPT, Folder


@pytest.fixture
def long_known(folder: Folder) -> None:
    """The service has run on this database for long."""
    folder.sql("INSERT INTO maintenance VALUES ('orphans', 0, 0, NULL, 0, 0, 0, NULL, NULL)")


@pytest.mark.usefixtures("long_known")
async def test_old_orphans_are_removed_and_blobs_with_a_record_are_kept(folder: Folder) -> None:
    kept = await folder.end(Status.SUCCEEDED, 1)
    await folder.script()
    for name in (stdin_blob(new_id("job")), artifact_blob(new_id("job"), 3), disk_blob("d" * 64), "jobs/odd/log"):
        await folder.blobs.put_bytes(name, b"12345")
    assert (await folder.sweep(keep_stdin_days=0))["orphans"].result.removed.count == 0  # they are young
    outcomes = await folder.sweep(keep_orphan_blobs_days=1e-9, keep_stdin_days=0)
    assert (outcomes["orphans"].result.removed.count, outcomes["orphans"].result.removed.size_bytes) == (4, 20)
    assert len(folder.bytes_of(kept.id)) == 6
    assert await folder.blobs.size(disk_blob(SCRIPT)) == 4
    left = [path.name for path in (folder.path / "blobs/jobs").iterdir()]
    assert left == [kept.id]


async def test_a_new_database_costs_no_blobs_at_once(folder: Folder) -> None:
    names = [stdin_blob(new_id("job")) for _ in range(5)]
    for name in names:
        await folder.blobs.put_bytes(name, b"x")
        os.utime(folder.path / "blobs" / name, (0, 0))
    for _ in range(2):
        result = (await folder.sweep(keep_orphan_blobs_days=1))["orphans"].result
        assert result.removed.count == 0
        assert result.findings[0].startswith("5 blobs have no record in this database")
    assert all([await folder.blobs.size(name) for name in names])
    folder.sql("UPDATE maintenance SET first_run_at = first_run_at - ?", 2 * 86_400_000_000)
    assert (await folder.sweep(keep_orphan_blobs_days=1))["orphans"].result.removed.count == 5


@pytest.mark.usefixtures("long_known")
async def test_a_dry_run_counts_orphans_and_keeps_them(folder: Folder) -> None:
    name = stdin_blob(new_id("job"))
    await folder.blobs.put_bytes(name, b"x")
    assert (await folder.sweep(dry_run=True, keep_orphan_blobs_days=1e-9))["orphans"].result.removed.count == 1
    assert await folder.blobs.size(name) == 1


async def test_empty_folders_of_killed_removals_are_removed(folder: Folder) -> None:
    old, young = folder.path / "blobs/jobs/old/artifacts", folder.path / "blobs/jobs/young"
    for path in (old, young):
        path.mkdir(parents=True)
    for path in (old, old.parent):
        os.utime(path, (time.time() - 9999, time.time() - 9999))
    await folder.blobs.remove_empty_folders(3600)
    # Its own folder's time is that of the removal just now: it goes with the next look.
    assert not old.exists() and young.exists()
    os.utime(old.parent, (0, 0))
    assert await folder.blobs.remove_empty_folders(3600) == 1
    assert [path.name for path in (folder.path / "blobs/jobs").iterdir()] == ["young"]


async def test_files_of_unfinished_puts_are_removed(folder: Folder) -> None:
    await folder.blobs.put_bytes("jobs/odd/log", b"x")
    old, young = folder.path / "blobs/jobs/odd/log#1", folder.path / "blobs/jobs/odd/log#2"
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    assert (await folder.sweep())["orphans"].result.removed.count == 1
    assert not old.exists() and young.exists()
