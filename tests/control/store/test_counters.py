"""The counters of projects equal a recount after every change, whatever changes and whatever dies in between."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from belljar.control.store.claims import SqlClaims
from belljar.control.store.counters import recounted, stored
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.control.store.project_removal import SqlProjectRemoval
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.retention import SqlRetention
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.control.store.sandbox_tables import sandboxes
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.control.store.scripts import SqlScripts
from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxLease
from belljar.model.errors import QuotaExceeded
from belljar.model.job import Artifact, Job, LogInfo
from belljar.model.quotas import CountedQuota, QuotaLimits
from belljar.model.sandbox import EndReason
from belljar.model.states import TERMINAL, Status
from belljar.settings import Settings
from support.empty_database import place_empty_database
from support.examples import examples
from support.job_queue import begin, ended, lose_all, queued, take, uploaded
from support.sandboxes import ROOM, end_by, new_sandbox

PROJECTS = ("a", "b", "c")
PROJECT = st.sampled_from(PROJECTS)
WORKERS = st.sampled_from(["w1", "w2"])
NUMBERS = st.integers(0, 6)
STEP = st.one_of(
    st.tuples(st.just("submit"), PROJECT, st.integers(1, 4), st.sampled_from([None, 0, 1, 3])),
    st.tuples(st.just("submit"), PROJECT, st.integers(1, 4), st.none()),
    st.tuples(st.just("claim"), WORKERS, st.sampled_from([30.0, -1.0]), st.booleans()),
    st.tuples(st.just("claim"), WORKERS, st.just(30.0), st.booleans()),
    st.tuples(st.just("put_back"), WORKERS, NUMBERS),
    st.tuples(st.just("begin"), WORKERS, NUMBERS),
    st.tuples(st.just("finish"), WORKERS, NUMBERS, st.sampled_from(sorted(TERMINAL)), st.integers(0, 1000)),
    st.tuples(st.just("requeue"), WORKERS, NUMBERS),
    st.tuples(st.just("recover"), WORKERS),
    st.tuples(st.just("expire")),
    st.tuples(st.just("cancel"), NUMBERS),
    st.tuples(st.just("meter")),
    st.tuples(st.just("remove"), st.sampled_from(sorted(TERMINAL))),
    st.tuples(st.just("upload"), PROJECT, NUMBERS),
    st.tuples(st.just("delete_script"), PROJECT, NUMBERS),
    st.tuples(st.just("create_sandbox"), PROJECT, st.integers(1, 4)),
    st.tuples(st.just("claim_sandbox"), WORKERS, st.sampled_from([30.0, -1.0])),
    st.tuples(st.just("end_sandbox"), NUMBERS),
    st.tuples(st.just("decline_sandbox"), NUMBERS),
    st.tuples(st.just("lose_sandboxes")),
    st.tuples(st.just("remove_sandboxes"), PROJECT),
    st.tuples(st.just("die_before_commit"), st.sampled_from(["queued", "starting", "running", "failed"])),
    st.tuples(st.just("restart")),
)


class World:
    """Callers and workers over one database, which may be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attempts: list[Job] = []
        self.submitted: list[Job] = []
        self.leases: list[SandboxLease] = []

    async def open(self) -> None:
        self.use(await open_database(Settings(data_dir=self.folder)))

    def use(self, database: Database) -> None:
        self.database = database
        self.jobs, self.claims = SqlJobs(database), SqlClaims(database)
        self.scripts = SqlScripts(database)
        self.sandboxes, self.sandbox_claims = SqlSandboxes(database), SqlSandboxClaims(database)

    async def do(self, name: str, *rest: object) -> None:
        await getattr(self, name)(*rest)

    async def submit(self, project: str, vcpus: int, max_queued_jobs: int | None) -> None:
        job = queued(project=project, vcpus=vcpus, max_attempts=2)
        queued_before = (await SqlQuotas(self.database).use(project)).used[CountedQuota.QUEUED_JOBS]
        try:
            await self.jobs.insert(job, limits=QuotaLimits(max_queued_jobs=max_queued_jobs))
        except QuotaExceeded as error:
            assert max_queued_jobs is not None and queued_before >= max_queued_jobs
            assert error.details == {"quota": "max_queued_jobs", "limit": max_queued_jobs, "used": queued_before}
        else:
            assert max_queued_jobs is None or queued_before < max_queued_jobs
            self.submitted.append(job)

    async def claim(self, worker: str, lease_seconds: float, expected: bool) -> None:
        job = await self.claims.claim(
            worker, vcpus=64, memory_mb=1 << 20, lease_seconds=lease_seconds, expected=expected
        )
        if job is not None:
            self.attempts.append(job)

    async def put_back(self, worker: str, number: int) -> None:
        for job in self.attempts[number : number + 1]:
            await self.claims.put_back(worker, job)

    async def begin(self, worker: str, number: int) -> None:
        for job in self.attempts[number : number + 1]:
            await begin(self.claims, job, worker)

    async def finish(self, worker: str, number: int, status: Status, size: int) -> None:
        kept = (Artifact(path="x", size_bytes=size), Artifact(path="y", size_bytes=1))
        logs = LogInfo(stdout_bytes=size, stderr_bytes=2)
        for job in self.attempts[number : number + 1]:
            await self.claims.finish(worker, job, ended(status, kept_artifacts=kept, logs=logs))

    async def requeue(self, worker: str, number: int) -> None:
        for job in self.attempts[number : number + 1]:
            await self.claims.requeue(worker, job, reason="x", code="y")

    async def recover(self, worker: str) -> None:
        await lose_all(self.claims, worker)

    async def expire(self) -> None:
        await self.claims.expire()

    async def cancel(self, number: int) -> None:
        for job in self.submitted[number : number + 1]:
            await self.jobs.cancel(job.project, job.id)

    async def meter(self) -> None:
        await self.claims.meter()
        await self.sandbox_claims.meter()

    async def create_sandbox(self, project: str, vcpus: int) -> None:
        await self.sandboxes.insert(new_sandbox(project=project, vcpus=vcpus))

    async def claim_sandbox(self, worker: str, lease_seconds: float) -> None:
        node = NodeIdentity(worker, "")
        sandbox = await self.sandbox_claims.claim(node, ROOM, lease_seconds)
        if sandbox is not None:
            self.leases.append(SandboxLease(sandbox.id, sandbox.fence, node))

    async def end_sandbox(self, number: int) -> None:
        for lease in self.leases[number : number + 1]:
            await self.sandbox_claims.end(lease, end_by(EndReason.IDLE))

    async def decline_sandbox(self, number: int) -> None:
        for lease in self.leases[number : number + 1]:
            await self.sandbox_claims.decline(lease)

    async def lose_sandboxes(self) -> None:
        await self.sandbox_claims.lose_silent()

    async def remove_sandboxes(self, project: str) -> None:
        await SqlProjectRemoval(self.database).remove_rows(sandboxes, project, 1)

    async def remove(self, status: Status) -> None:
        await SqlRetention(self.database).remove_ended(status, datetime.now(UTC) + timedelta(days=1), 2)

    async def upload(self, project: str, number: int) -> None:
        await self.scripts.add(uploaded(f"{number}" * 64, project, size_bytes=100 + number))

    async def delete_script(self, project: str, number: int) -> None:
        await self.scripts.delete(project, f"{number}" * 64)

    async def die_before_commit(self, status: str) -> None:
        """Fail after jobs were changed, and before the transaction is committed."""

        def die(connection: Connection) -> None:
            connection.execute(text("UPDATE jobs SET status = :status, worker = 'w9'"), {"status": status})
            connection.execute(text("DELETE FROM jobs WHERE id IN (SELECT id FROM jobs LIMIT 1)"))
            raise InterruptedError

        with pytest.raises(InterruptedError):
            await self.database.writing(die)

    async def restart(self) -> None:
        """Go on with a copy of the files as they are now: what a killed process leaves."""
        copy = Path(tempfile.mkdtemp(dir=self.folder.parent))
        for path in self.folder.glob("belljar.db*"):
            if not path.name.endswith("-shm"):  # it is made anew from the log
                shutil.copy(path, copy)
        await self.database.close()
        self.folder = copy
        await self.open()

    async def check(self) -> None:
        submitted = Counter(job.project for job in self.submitted)

        def check(connection: Connection) -> None:
            for project in PROJECTS:
                assert stored(connection, project) == recounted(connection, project)
                jobs_of_days = "SELECT coalesce(sum(jobs), 0), min(vcpu_ms), min(memory_mb_ms) FROM project_usage"
                query = text(f"{jobs_of_days} WHERE project = :project")
                number, *uses = connection.execute(query, {"project": project}).one()
                assert number == submitted[project]
                assert all(use is None or use >= 0 for use in uses)

        await self.database.reading(check)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied."""
    folder = tmp_path_factory.mktemp("empty")
    asyncio.run(place_empty_database(Settings(data_dir=folder)))
    return folder


@settings(max_examples=examples(20), deadline=None)
@given(steps=st.lists(STEP, min_size=5, max_size=30))
def test_the_counters_equal_a_recount_after_every_step(empty: Path, steps: list[tuple[object, ...]]) -> None:
    async def play(folder: Path) -> None:
        world = World(folder)
        await world.open()
        try:
            for step in steps:
                await world.do(*step)  # type: ignore[arg-type]
                await world.check()
        finally:
            await world.database.close()

    with tempfile.TemporaryDirectory(dir=empty) as top:
        folder = Path(top) / "first"
        folder.mkdir(mode=0o700)
        shutil.copy(empty / "belljar.db", folder)
        asyncio.run(play(folder))


async def set_back(database: Database, seconds: float, *columns: str) -> None:
    """Move times of all jobs into the past."""
    changes = ", ".join(f"{column} = {column} - {int(seconds * 1e6)}" for column in columns)
    statements = [
        # Metering reacts to this column: set it in a job that is not held, as far as the trigger knows.
        "DROP TRIGGER project_usage_metered",
        f"UPDATE jobs SET {changes}",
    ]

    def write(connection: Connection) -> None:
        trigger = connection.execute(
            text("SELECT sql FROM sqlite_master WHERE name = 'project_usage_metered'")
        ).scalar_one()
        for statement in [*statements, trigger]:
            connection.exec_driver_sql(statement)

    await database.writing(write)


async def used(database: Database, project: str = "mine") -> tuple[float, float]:
    days = await SqlQuotas(database).days(project, 2)
    return sum(day.vcpu_seconds for day in days), sum(day.memory_mb_seconds for day in days)


@pytest.mark.parametrize("end", ["finish", "requeue", "meter"])
async def test_an_attempt_counts_what_it_used_however_it_ends(
    database: Database, jobs: SqlJobs, claims: SqlClaims, end: str
) -> None:
    await jobs.insert(queued(vcpus=3, memory_mb=500))
    job = await take(claims)
    assert job is not None
    await set_back(database, 20, "metered_until")
    if end == "finish":
        await claims.finish("w1", job, ended(Status.FAILED))
    elif end == "requeue":  # a lost attempt has used machines, too
        await claims.requeue("w1", job, reason="x", code="y")
    else:
        await claims.meter()
    vcpu_seconds, memory_mb_seconds = await used(database)
    assert 60 <= vcpu_seconds < 60 + 3 * 60
    assert memory_mb_seconds == pytest.approx(vcpu_seconds / 3 * 500)


async def test_what_was_metered_is_not_counted_again(database: Database, jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    job = await take(claims)
    assert job is not None
    await set_back(database, 100, "metered_until")
    for _ in range(3):
        await claims.meter()
    await claims.finish("w1", job, ended(Status.FAILED))
    assert 100 <= (await used(database))[0] < 160


async def test_nothing_counts_beyond_the_lease_of_a_node_that_died(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued())
    assert await take(claims, lease_seconds=30)
    await set_back(database, 250, "metered_until", "lease_until")  # the server was down for some time, too
    assert len(await claims.expire()) == 1
    assert (await used(database))[0] == pytest.approx(30, abs=0.01)


async def test_a_clock_that_jumps_forward_does_not_charge_for_days(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued())
    assert await take(claims, lease_seconds=30)
    await set_back(database, 1e6, "metered_until")
    await claims.meter()
    assert (await used(database))[0] == 300


async def test_the_use_of_a_day_stays_when_its_jobs_are_removed(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued())
    job = await take(claims)
    assert job is not None
    await set_back(database, 50, "metered_until")
    await claims.finish("w1", job, ended(Status.FAILED))
    before = await used(database)
    assert (await SqlRetention(database).remove_ended(Status.FAILED, datetime.now(UTC), 9)).job_ids == [job.id]
    assert await used(database) == before
    assert (await SqlQuotas(database).days("mine", 2))[0].jobs + (await SqlQuotas(database).days("mine", 2))[
        1
    ].jobs == 1
