"""Any sequence of calls of workers and callers: every change of status is in the table of transitions."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.job import Job
from belljar.model.states import TERMINAL, TRANSITIONS, Status
from belljar.settings import Settings
from support.examples import examples
from support.job_queue import begin, ended, lose_all, queued, take

WORKERS = st.sampled_from(["w1", "w2"])
ATTEMPTS = st.integers(0, 5)
STEP = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 3)),
    st.tuples(st.just("claim"), WORKERS, st.sampled_from([30.0, -1.0])),
    st.tuples(st.just("begin"), WORKERS, ATTEMPTS),
    st.tuples(st.just("finish"), WORKERS, ATTEMPTS, st.sampled_from(sorted(TERMINAL))),
    st.tuples(st.just("requeue"), WORKERS, ATTEMPTS),
    st.tuples(st.just("recover"), WORKERS),
    st.tuples(st.just("expire")),
    st.tuples(st.just("cancel"), ATTEMPTS),
)


class World:
    """Workers and callers over one store; each remembers every result, however old."""

    def __init__(self, database: Database) -> None:
        self.jobs = SqlJobs(database)
        self.claims = SqlClaims(database)
        self.attempts: list[Job] = []
        self.submitted: list[Job] = []

    async def do(self, name: str, *rest: object) -> None:
        await getattr(self, name)(*rest)

    async def submit(self, max_attempts: int) -> None:
        self.submitted.append(await self.jobs.insert(queued(max_attempts=max_attempts)))

    async def claim(self, worker: str, lease_seconds: float) -> None:
        job = await take(self.claims, worker, lease_seconds)
        if job is not None:
            self.attempts.append(job)

    async def begin(self, worker: str, number: int) -> None:
        for job in self.attempts[number : number + 1]:
            await begin(self.claims, job, worker)

    async def finish(self, worker: str, number: int, status: Status) -> None:
        for job in self.attempts[number : number + 1]:
            if await self.claims.finish(worker, job, ended(status)):
                after = await self.jobs.get(None, job.id)
                assert after is not None and after.status is status
                assert (after.worker, after.attempt) == (worker, job.attempt)

    async def requeue(self, worker: str, number: int) -> None:
        for job in self.attempts[number : number + 1]:
            await self.claims.requeue(worker, job, reason="x", code="y")

    async def recover(self, worker: str) -> None:
        await lose_all(self.claims, worker)

    async def expire(self) -> None:
        await self.claims.expire()

    async def cancel(self, number: int) -> None:
        for job in self.submitted[number : number + 1]:
            await self.jobs.cancel("mine", job.id)

    async def all(self) -> dict[str, Job]:
        return {job.id: job for job in (await self.jobs.list("mine", limit=100))[0]}


def check(before: Job, after: Job) -> None:
    assert after.status is before.status or after.status in TRANSITIONS[before.status]
    if before.status.terminal:
        assert after == before
    assert before.attempt <= after.attempt <= after.max_attempts
    assert after.lost_attempts[: len(before.lost_attempts)] == before.lost_attempts
    assert after.cancel_requested or not before.cancel_requested
    assert (after.finished_at is not None) == after.status.terminal
    assert (after.worker is None) or after.status is not Status.QUEUED


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied."""
    folder = tmp_path_factory.mktemp("empty")

    async def make() -> None:
        await (await open_database(Settings(data_dir=folder))).close()

    asyncio.run(make())
    return folder


@settings(max_examples=examples(40), deadline=None)
@given(steps=st.lists(STEP, min_size=5, max_size=25))
def test_every_change_is_in_the_table_and_an_end_is_an_end(empty: Path, steps: list[tuple[object, ...]]) -> None:
    async def play(folder: str) -> None:
        database = await open_database(Settings(data_dir=Path(folder)))
        try:
            world = World(database)
            before = await world.all()
            for step in steps:
                await world.do(*step)  # type: ignore[arg-type]
                now = await world.all()
                for job_id in before:
                    check(before[job_id], now[job_id])
                before = now
            assert await world.jobs.counts() == Counter(job.status for job in before.values())
        finally:
            await database.close()

    with tempfile.TemporaryDirectory(dir=empty) as folder:
        shutil.copy(empty / "belljar.db", folder)
        asyncio.run(play(folder))
