"""Logs that their worker did not store: copied to the blob store, or removed with their job."""

from __future__ import annotations

from belljar.control.logs.log import log_blob, log_path
from belljar.model.ids import new_id
from belljar.model.states import Status
from support.data_folder import Folder
from support.job_queue import queued
from support.old_files import old_file


async def test_logs_of_ended_jobs_become_blobs_and_logs_without_a_job_are_removed(folder: Folder) -> None:
    ended = await folder.end(Status.LOST, 1)
    await folder.blobs.delete(log_blob(ended.id))
    waiting = await folder.jobs.insert(queued())
    missing, fresh = new_id("job"), new_id("job")
    for job_id, days in ((ended.id, 1.0), (waiting.id, 1.0), (missing, 1.0), (fresh, 0.0)):
        old_file(log_path(folder.path, job_id), days, b"a log")
    assert (await folder.sweep())["logs"].result.removed.count == 1
    assert await folder.blobs.get_bytes(log_blob(ended.id)) == b"a log"
    left = {path.stem for path in (folder.path / "run/logs").iterdir()}
    assert left == {waiting.id, fresh}


async def test_a_log_that_is_longer_than_its_blob_is_kept_for_its_worker(folder: Folder) -> None:
    """The blob is of an earlier attempt; the log of the last one could not be stored yet."""
    ended = await folder.end(Status.SUCCEEDED, 1)
    path = old_file(log_path(folder.path, ended.id), 1.0, b"12345678 and more")
    await folder.sweep()
    assert path.read_bytes() == b"12345678 and more"
