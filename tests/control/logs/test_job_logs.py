"""The logs of jobs with several attempts, on one node and on several."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.logs.job_logs import JobLogs
from belljar.control.logs.log import HEADER, JobLog, LogWriter, log_blob, log_path
from belljar.model.errors import HostError
from belljar.model.job import Job, LostAttempt
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from belljar.settings import Settings
from support.faults import EIO, Faults, Faulty
from support.job_queue import queued
from support.worker_harness import QUICK_UPLOADS


class Jobs:
    """What a store says of jobs: their status and who had them last."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[Status, str | None]] = {}

    async def statuses(self, job_ids: list[str]) -> dict[str, tuple[Status, str | None]]:
        return {job_id: self.known[job_id] for job_id in job_ids if job_id in self.known}


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(Settings(data_dir=tmp_path))


async def say(logs: JobLogs, job: Job, text: str) -> None:
    async with logs.opened(job) as writer:
        writer.append(LogStream.STDOUT, text.encode())


def lost(job: Job) -> Job:
    attempt = LostAttempt(
        attempt=job.attempt, worker="w1", had_started=True, code="x", message="its node died", at=job.created_at
    )
    return job.model_copy(update={"lost_attempts": (attempt,)})


async def records_of(blobs: Blobs, data_dir: Path, job: Job) -> list[tuple[int, bytes]]:
    records = [record async for record in JobLog(data_dir, blobs, job.id).read()]
    return [(record.attempt, record.data.strip()) for record in records]


async def sweep_until_verified(logs: JobLogs, jobs: Any) -> None:
    """The first sweep uploads; the second finds the log uploaded, and removes the file."""
    for _ in range(2):
        await logs.sweep(jobs)


@pytest.mark.parametrize("second_node", ["a", "b"])
async def test_an_attempt_goes_on_in_the_log_of_the_one_before(tmp_path: Path, blobs: Blobs, second_node: str) -> None:
    nodes = {name: JobLogs(tmp_path / name, blobs, QUICK_UPLOADS) for name in ("a", "b")}
    job = queued(attempt=1)
    await say(nodes["a"], job, "one")
    nodes["a"].note_lost(lost(job))
    await nodes["a"].keep(job.id)
    again = job.model_copy(update={"attempt": 2})
    await say(nodes[second_node], again, "two")
    await nodes[second_node].keep(job.id)
    expected = [(1, b"one"), (1, b"[belljar: attempt 1 was lost: its node died]"), (2, b"two")]
    for name in nodes:
        assert await records_of(blobs, tmp_path / name, job) == expected
        assert not log_path(tmp_path / name, job.id).exists()


async def test_the_log_of_a_lost_attempt_names_no_path_of_the_host(tmp_path: Path, blobs: Blobs) -> None:
    job = lost(queued(attempt=1))
    attempt = job.lost_attempts[0].model_copy(update={"message": "cannot read /srv/blobs/x: it is broken"})
    JobLogs(tmp_path, blobs, QUICK_UPLOADS).note_lost(job.model_copy(update={"lost_attempts": (attempt,)}))
    words = b"[belljar: attempt 1 was lost: cannot read PATH: it is broken]"
    assert await records_of(blobs, tmp_path, job) == [(1, words)]


async def test_a_log_found_after_its_job_ended_elsewhere_is_put_in_front(tmp_path: Path, blobs: Blobs) -> None:
    """The first node was cut off, and came back when the second had run the job to its end."""
    here, there = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), JobLogs(tmp_path / "b", blobs, QUICK_UPLOADS)
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(here, job, "one")
    again = job.model_copy(update={"attempt": 2})
    await say(there, again, "two")
    jobs.known[job.id] = Status.RUNNING, "b"
    await here.sweep(jobs)
    assert log_path(tmp_path / "a", job.id).exists(), "the other attempt still writes its own"
    await there.keep(job.id)
    jobs.known[job.id] = Status.SUCCEEDED, "b"
    await sweep_until_verified(here, jobs)
    assert await records_of(blobs, tmp_path / "a", job) == [(1, b"one"), (2, b"two")]
    assert not log_path(tmp_path / "a", job.id).exists()


async def test_a_log_found_when_another_node_has_left_its_own_replaces_nothing(tmp_path: Path, blobs: Blobs) -> None:
    """The first node was cut off with its log, and came back when the second had lost its attempt too."""
    here, there = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), JobLogs(tmp_path / "b", blobs, QUICK_UPLOADS)
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(here, job, "one")
    await say(there, job.model_copy(update={"attempt": 2}), "two")
    await there.keep(job.id)
    jobs.known[job.id] = Status.SUCCEEDED, None
    await sweep_until_verified(here, jobs)
    assert await records_of(blobs, tmp_path / "a", job) == [(1, b"one"), (2, b"two")]


@pytest.mark.parametrize("status", [Status.QUEUED, Status.STARTING])
async def test_another_process_over_the_same_folder_takes_no_log_away_from_an_attempt(
    tmp_path: Path, blobs: Blobs, status: Status
) -> None:
    """A server and a worker beside it share the folder. The server may have looked before the job was claimed."""
    worker, server = JobLogs(tmp_path, blobs, QUICK_UPLOADS), JobLogs(tmp_path, blobs, QUICK_UPLOADS)
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(worker, job, "one")
    jobs.known[job.id] = status, None
    async with worker.opened(job.model_copy(update={"attempt": 2})) as writer:
        await server.sweep(jobs)
        writer.append(LogStream.STDOUT, b"two")
    await worker.keep(job.id)
    assert await records_of(blobs, tmp_path, job) == [(1, b"one"), (2, b"two")]


async def test_one_process_at_a_time_uploads_a_log(tmp_path: Path, blobs: Blobs) -> None:
    faults = Faults()
    hanging: Any = Faulty(blobs, "blobs", faults)
    first, second = JobLogs(tmp_path, hanging, QUICK_UPLOADS), JobLogs(tmp_path, blobs, QUICK_UPLOADS)
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await blobs.put_bytes(log_blob(job.id), HEADER.pack(3, LogStream.STDOUT, 2) + b"two")
    await say(first, job, "one")
    jobs.known[job.id] = Status.SUCCEEDED, None
    faults.hang("blobs.put_file", times=1)
    uploading = asyncio.create_task(first.sweep(jobs))
    async with asyncio.timeout(5):
        while not faults.calls["blobs.put_file"]:
            await asyncio.sleep(0.01)
    path = log_path(tmp_path, job.id)
    files = {each: each.read_bytes() for each in path.parent.iterdir()}
    await second.sweep(jobs)
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == files
    uploading.cancel()
    await asyncio.wait({uploading})
    await sweep_until_verified(second, jobs)
    assert await records_of(blobs, tmp_path, job) == [(1, b"one"), (2, b"two")]
    assert list(path.parent.iterdir()) == []


async def test_processes_that_upload_their_parts_at_the_same_time_lose_and_double_nothing(
    tmp_path: Path, blobs: Blobs
) -> None:
    """Each has seen the blob before the other replaced it; each looks again before it removes its file."""
    nodes = {name: JobLogs(tmp_path / name, blobs, QUICK_UPLOADS) for name in ("a", "b")}
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(nodes["a"], job, "one")
    await say(nodes["b"], job.model_copy(update={"attempt": 2}), "two")
    jobs.known[job.id] = Status.SUCCEEDED, None
    for _ in range(3):
        await asyncio.gather(*(logs.sweep(jobs) for logs in nodes.values()))
    await sweep_until_verified(nodes["a"], jobs)
    await sweep_until_verified(nodes["b"], jobs)
    for name in nodes:
        assert await records_of(blobs, tmp_path / name, job) == [(1, b"one"), (2, b"two")]
        assert list((tmp_path / name / "run" / "logs").iterdir()) == []


async def test_a_part_that_was_uploaded_and_merged_is_not_kept_twice(tmp_path: Path, blobs: Blobs) -> None:
    """The process was killed before it removed its file, and another has put its own part in front."""
    here, there = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), JobLogs(tmp_path / "b", blobs, QUICK_UPLOADS)
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(here, job, "one")
    await say(there, job.model_copy(update={"attempt": 2}), "two")
    jobs.known[job.id] = Status.SUCCEEDED, None
    await blobs.put_file(log_blob(job.id), log_path(tmp_path / "b", job.id))
    await sweep_until_verified(here, jobs)
    await sweep_until_verified(there, jobs)
    assert await records_of(blobs, tmp_path / "b", job) == [(1, b"one"), (2, b"two")]


async def test_what_is_added_while_a_log_is_uploaded_is_kept(tmp_path: Path, blobs: Blobs) -> None:
    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(blobs, name)

        async def put_file(self, name: str, path: Path) -> None:
            await blobs.put_file(name, path)
            JobLogs(tmp_path, blobs, QUICK_UPLOADS).note_lost(lost(job))

    slow: Any = Slow()
    jobs: Any = Jobs()
    job = queued(attempt=1)
    await say(JobLogs(tmp_path, blobs, QUICK_UPLOADS), job, "one")
    jobs.known[job.id] = Status.LOST, None
    await JobLogs(tmp_path, slow, QUICK_UPLOADS).sweep(jobs)
    await JobLogs(tmp_path, blobs, QUICK_UPLOADS).sweep(jobs)
    assert await records_of(blobs, tmp_path, job) == [(1, b"one"), (1, b"[belljar: attempt 1 was lost: its node died]")]


async def test_a_note_that_another_process_is_ahead_of_replaces_no_log(tmp_path: Path, blobs: Blobs) -> None:
    """The server has uploaded the log of the last attempt before the worker has noted that it was lost."""
    logs = JobLogs(tmp_path, blobs, QUICK_UPLOADS)
    job = queued(attempt=1)
    await say(logs, job, "one")
    await logs.keep(job.id)
    logs.note_lost(lost(job))
    await logs.keep(job.id)
    assert (1, b"one") in await records_of(blobs, tmp_path, job)


async def test_a_log_that_goes_on_from_what_is_kept_replaces_it(tmp_path: Path, blobs: Blobs) -> None:
    logs, job, jobs = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), queued(attempt=1), Jobs()
    await say(logs, job, "one")
    await blobs.put_file(log_blob(job.id), log_path(tmp_path / "a", job.id))
    await say(logs, job.model_copy(update={"attempt": 2}), "two")
    jobs.known[job.id] = Status.SUCCEEDED, "a"
    await sweep_until_verified(logs, jobs)
    assert await records_of(blobs, tmp_path / "elsewhere", job) == [(1, b"one"), (2, b"two")]
    assert not log_path(tmp_path / "a", job.id).exists()


async def test_a_log_that_cannot_be_compared_keeps_no_other_from_being_brought_away(
    tmp_path: Path, blobs: Blobs
) -> None:
    logs, jobs = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), Jobs()
    broken, other = sorted((queued(), queued()), key=lambda job: job.id)
    jobs.known = {broken.id: (Status.SUCCEEDED, "b"), other.id: (Status.SUCCEEDED, "a")}
    await blobs.put_bytes(log_blob(broken.id), b"kept")
    log_path(tmp_path / "a", broken.id).mkdir(parents=True)
    await say(logs, other, "text")
    await logs.sweep(jobs)  # type: ignore[arg-type]
    assert await blobs.size(log_blob(other.id))


@pytest.mark.parametrize("worker", ["a", "b"])
async def test_a_log_that_was_kept_and_not_removed_is_not_kept_twice(tmp_path: Path, blobs: Blobs, worker: str) -> None:
    logs, job, jobs = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), queued(attempt=1), Jobs()
    await say(logs, job, "one")
    data = log_path(tmp_path / "a", job.id).read_bytes()
    await logs.keep(job.id)
    log_path(tmp_path / "a", job.id).write_bytes(data)
    jobs.known[job.id] = Status.SUCCEEDED, worker
    await logs.sweep(jobs)  # type: ignore[arg-type]
    assert await records_of(blobs, tmp_path / "a", job) == [(1, b"one")]
    assert not log_path(tmp_path / "a", job.id).exists()


async def test_the_log_of_a_job_that_was_lost_for_good_while_its_node_was_away_is_kept(
    tmp_path: Path, blobs: Blobs
) -> None:
    logs, job, jobs = JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), queued(attempt=1), Jobs()
    deleted = queued(attempt=1)
    await say(logs, job, "one")
    await say(logs, deleted, "none")
    jobs.known[job.id] = Status.LOST, "a"
    await sweep_until_verified(logs, jobs)
    assert await records_of(blobs, tmp_path / "elsewhere", job) == [(1, b"one")]
    assert list((tmp_path / "a" / "run" / "logs").iterdir()) == []


async def test_a_log_that_is_written_to_is_not_taken_away(tmp_path: Path, blobs: Blobs) -> None:
    logs, job, jobs = JobLogs(tmp_path, blobs, QUICK_UPLOADS), queued(attempt=1), Jobs()
    jobs.known[job.id] = Status.QUEUED, None
    async with logs.opened(job) as writer:
        writer.append(LogStream.STDOUT, b"one")
        await logs.sweep(jobs)  # type: ignore[arg-type]
        await logs.keep(job.id)
        writer.append(LogStream.STDERR, b"two")
    assert await records_of(blobs, tmp_path, job) == [(1, b"one"), (1, b"two")]


async def test_blobs_that_refuse_do_not_begin_the_log_anew(tmp_path: Path, blobs: Blobs) -> None:
    faults, job = Faults(), queued(attempt=1)
    await say(JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS), job, "one")
    await JobLogs(tmp_path / "a", blobs, QUICK_UPLOADS).keep(job.id)
    refusing: Any = Faulty(blobs, "blobs", faults)
    logs, again = JobLogs(tmp_path / "b", refusing, QUICK_UPLOADS), job.model_copy(update={"attempt": 2})
    for error in (EIO, lambda: HostError("it refuses")):
        faults.refuse("blobs.stream", error, times=1)
        with pytest.raises(HostError):
            await say(logs, again, "two")
    await say(logs, again, "two")
    assert await records_of(blobs, tmp_path / "b", job) == [(1, b"one"), (2, b"two")]


async def test_a_log_that_cannot_be_written_any_more_is_no_error_of_the_job(small_disk: Path) -> None:
    with LogWriter(small_disk / "log", attempt=1) as log:
        for _ in range(10):
            log.append(LogStream.STDOUT, b"x" * 60_000)
    assert log.failure is not None
    assert "No space" in str(log.failure)
