"""Claims are fair between projects, keep within quotas, and delay no job for ever."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.next_job import TURN_SECONDS
from belljar.control.store.opening import open_database
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.schema import project_usage, projects
from belljar.model.job import Job
from belljar.model.quotas import UNLIMITED, ProjectQuotas, QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from belljar.settings import Settings
from support.empty_database import place_empty_database
from support.examples import examples
from support.job_queue import ended, queued, take

VCPUS = 4


class Node:
    """A worker of four vCPUs that counts what it holds, as the real one does."""

    def __init__(self, claims: SqlClaims, name: str = "w1", images: list[str] | None = None) -> None:
        self.claims, self.name, self.images = claims, name, images
        self.held: list[Job] = []

    async def claim(self) -> Job | None:
        free = VCPUS - sum(job.resources.vcpus for job in self.held)
        if not free:
            return None
        largest = NodeLimits(vcpus=VCPUS, memory_mb=4096)
        job = await self.claims.claim(
            self.name, vcpus=free, memory_mb=4096, lease_seconds=30, largest=largest, images=self.images
        )
        if job is not None:
            self.held.append(job)
        return job

    async def claim_all(self) -> list[str]:
        """Claim until nothing fits, and return the projects in their order."""
        found = []
        while job := await self.claim():
            found.append(job.project)
        return found

    async def end(self, number: int = 0) -> Job:
        job = self.held.pop(number)
        assert await self.claims.finish(self.name, job, ended(Status.FAILED))
        return job


@pytest.fixture
def quotas(database: Database) -> SqlQuotas:
    return SqlQuotas(database)


async def add_projects(database: Database, *names: str) -> None:
    rows = [{"name": name, "created_at": datetime.now(UTC)} for name in names]
    await database.writing(lambda connection: connection.execute(projects.insert(), rows))


async def submit(jobs: SqlJobs, project: str, count: int = 1, **fields: object) -> list[Job]:
    return [await jobs.insert(queued(project=project, **fields)) for _ in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("vcpus", [1, 2, VCPUS])
async def test_a_project_with_many_queued_jobs_does_not_delay_the_first_of_another(
    jobs: SqlJobs, claims: SqlClaims, vcpus: int
) -> None:
    node = Node(claims)
    await submit(jobs, "flood", 30, vcpus=vcpus, priority=100)
    assert len(await node.claim_all()) == VCPUS // vcpus
    (other,) = await submit(jobs, "other", vcpus=vcpus, priority=-100)
    await node.end()
    job = await node.claim()
    assert job is not None and job.id == other.id


async def test_projects_share_a_node_by_vcpus(jobs: SqlJobs, claims: SqlClaims) -> None:
    node = Node(claims)
    await submit(jobs, "wide", 10, vcpus=2)
    await submit(jobs, "narrow", 10, vcpus=1)
    assert sorted(await node.claim_all()) == ["narrow", "narrow", "wide"]


async def test_a_project_alone_has_the_whole_node(jobs: SqlJobs, claims: SqlClaims) -> None:
    await submit(jobs, "alone", 6)
    assert await Node(claims).claim_all() == ["alone"] * VCPUS


async def test_inside_a_project_the_order_is_priority_then_age(jobs: SqlJobs, claims: SqlClaims) -> None:
    kept = [(await submit(jobs, "mine", priority=priority))[0] for priority in (0, 5, 0)]
    await submit(jobs, "other", priority=9)
    order = [job.id for job in [await take(claims) for _ in range(4)] if job and job.project == "mine"]
    assert order == [kept[1].id, kept[0].id, kept[2].id]


async def test_the_first_job_of_the_next_project_keeps_its_room_free(jobs: SqlJobs, claims: SqlClaims) -> None:
    node = Node(claims)
    await submit(jobs, "small", 20)
    assert len(await node.claim_all()) == VCPUS
    (large,) = await submit(jobs, "large", vcpus=VCPUS)
    for _ in range(VCPUS):
        assert await node.claim() is None  # room is kept, whatever the other project has queued
        await node.end()
    job = await node.claim()
    assert job is not None and job.id == large.id


async def test_projects_that_come_and_go_do_not_delay_a_large_job_for_ever(jobs: SqlJobs, claims: SqlClaims) -> None:
    node = Node(claims)
    await submit(jobs, "steady", 2)
    assert len(await node.claim_all()) == 2
    (large,) = await submit(jobs, "large", vcpus=VCPUS)
    for number in range(4):
        await submit(jobs, f"new{number}")
        if node.held:
            await node.end()
        job = await node.claim()
        if job is not None:
            break
    assert job is not None and job.id == large.id


async def test_a_project_that_holds_little_and_waits_for_long_has_its_turn(
    database: Database, jobs: SqlJobs, claims: SqlClaims
) -> None:
    node = Node(claims)
    await submit(jobs, "mixed")
    assert await node.claim_all() == ["mixed"]  # runs for an hour
    (large,) = await submit(jobs, "mixed", vcpus=3)
    await submit(jobs, "stream", 5)
    assert await node.claim_all() == ["stream"]  # then the large job of the other project is next, by its age
    for _ in range(2):
        await node.end(1)
        assert (await node.claim_all()) == ["stream"]  # with fewer vCPUs, the stream is first each time
    seconds = int((TURN_SECONDS + 1) * 1e6)

    def wait(connection: Connection) -> None:
        for column, table in (("changed_at", "node_counters"), ("waiting_since", "project_counters")):
            connection.exec_driver_sql(f"UPDATE {table} SET {column} = {column} - {seconds} WHERE project = 'mixed'")

    await database.writing(wait)
    await node.end(1)
    job = await node.claim()
    assert job is not None and job.id == large.id


async def test_a_stream_on_one_node_delays_no_job_that_only_another_can_run(jobs: SqlJobs, claims: SqlClaims) -> None:
    here, there = Node(claims, "here", ["x86"]), Node(claims, "there", ["arm"])
    await submit(jobs, "mixed", 30, image_digest="x86")
    assert len(await here.claim_all()) == VCPUS
    await submit(jobs, "stream", 10, image_digest="arm")
    assert len(await there.claim_all()) == VCPUS
    (large,) = await submit(jobs, "mixed", vcpus=VCPUS, image_digest="arm")
    for _ in range(VCPUS):
        await here.end()
        assert await here.claim_all() == ["mixed"]
        assert await there.claim() is None
        await there.end()
    job = await there.claim()
    assert job is not None and job.id == large.id


async def test_a_project_at_its_running_quota_is_passed_over_and_continues_when_a_job_ends(
    database: Database, jobs: SqlJobs, claims: SqlClaims, quotas: SqlQuotas
) -> None:
    await add_projects(database, "capped")
    await quotas.set("capped", ProjectQuotas(max_running_jobs=2))
    await submit(jobs, "capped", 5)
    node = Node(claims)
    assert await node.claim_all() == ["capped"] * 2
    await submit(jobs, "other", 1)
    assert await node.claim_all() == ["other"]
    for end in ("finish", "expire", "put_back"):  # each way to end an attempt releases it at once
        number = next(number for number, job in enumerate(node.held) if job.project == "capped")
        if end == "finish":
            await node.end(number)
        elif end == "expire":
            job = node.held.pop(number)
            await claims.requeue("w1", job, reason="x", code="y")
        else:
            await claims.put_back("w1", node.held.pop(number))
        assert await node.claim_all() == ["capped"], end
    assert Counter(job.project for job in node.held) == {"capped": 2, "other": 1}


async def test_the_default_quota_holds_for_projects_without_their_own(
    database: Database, jobs: SqlJobs, quotas: SqlQuotas
) -> None:
    claims = SqlClaims(database, QuotaLimits(max_running_jobs=1))
    await add_projects(database, "free", "stopped")
    await quotas.set("free", ProjectQuotas(max_running_jobs=UNLIMITED))
    await quotas.set("stopped", ProjectQuotas(max_running_jobs=0))
    for project in ("default", "free", "stopped"):
        await submit(jobs, project, 4)
    assert Counter(await Node(claims).claim_all()) == {"free": 3, "default": 1}


@pytest.mark.parametrize(
    ("quota", "column", "value"),
    [
        ("max_vcpu_seconds_per_day", "vcpu_ms", 10_000),
        ("max_memory_mb_seconds_per_day", "memory_mb_ms", 10_999),
    ],
)
async def test_a_project_that_used_up_its_day_is_passed_over_until_the_next(
    database: Database, jobs: SqlJobs, claims: SqlClaims, quotas: SqlQuotas, quota: str, column: str, value: int
) -> None:
    await add_projects(database, "spent")
    await quotas.set("spent", ProjectQuotas.model_validate({quota: 10}))
    await submit(jobs, "spent")
    await submit(jobs, "other")

    async def write(milliseconds: int, days_ago: int) -> None:
        def write(connection: Connection) -> None:
            connection.execute(project_usage.update().values({column: milliseconds}))
            connection.exec_driver_sql(f"UPDATE project_usage SET day = day - {days_ago}")

        await database.writing(write)

    await write(value, 0)
    node = Node(claims)
    assert await node.claim_all() == ["other"]
    await write(value, 1)  # it was yesterday
    assert await node.claim_all() == ["spent"]


async def test_a_suspended_project_is_passed_over(database: Database, jobs: SqlJobs, claims: SqlClaims) -> None:
    await add_projects(database, "bad")
    await submit(jobs, "bad")
    await submit(jobs, "good")
    suspended = projects.update().where(projects.c.name == "bad")
    await database.writing(lambda connection: connection.execute(suspended.values(suspended_at=datetime.now(UTC))))
    assert await Node(claims).claim_all() == ["good"]
    await database.writing(lambda connection: connection.execute(suspended.values(suspended_at=None)))
    assert await Node(claims).claim_all() == ["bad"]


async def test_a_job_that_was_found_is_not_claimed_beyond_the_quota_that_others_have_filled(
    database: Database, jobs: SqlJobs, quotas: SqlQuotas
) -> None:
    await add_projects(database, "capped")
    await quotas.set("capped", ProjectQuotas(max_running_jobs=2))
    await submit(jobs, "capped", 12)
    workers = [SqlClaims(database).claim(f"w{n}", vcpus=9, memory_mb=999, lease_seconds=30) for n in range(6)]
    claimed = [job.id for job in await asyncio.gather(*workers) if job is not None]
    assert len(claimed) == len(set(claimed)) == 2


# --- any projects, jobs and ends ------------------------------------------------------------------------------------

PROJECTS = ("a", "b", "c")
JOB = st.tuples(st.sampled_from(PROJECTS), st.integers(1, VCPUS), st.integers(-1, 1))
STEP = st.one_of(
    st.lists(JOB, min_size=1, max_size=6), st.integers(0, 3), st.just("claim"), st.just("claim"), st.just("claim")
)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    asyncio.run(place_empty_database(Settings(data_dir=folder)))
    return folder


@settings(max_examples=examples(15), deadline=None)
@given(
    steps=st.lists(STEP, min_size=3, max_size=20),
    caps=st.fixed_dictionaries({project: st.sampled_from([None, 1, 2]) for project in PROJECTS}),
)
def test_every_job_has_its_turn_once_and_no_quota_is_exceeded(
    empty: Path, steps: list[object], caps: dict[str, int | None]
) -> None:
    async def play(folder: Path) -> None:
        database = await open_database(Settings(data_dir=folder))
        try:
            await add_projects(database, *PROJECTS)
            for project, cap in caps.items():
                await SqlQuotas(database).set(project, ProjectQuotas(max_running_jobs=cap))
            await _Simulation(database, caps).play(steps)
        finally:
            await database.close()

    with tempfile.TemporaryDirectory(dir=empty) as folder:
        shutil.copy(empty / "belljar.db", folder)
        asyncio.run(play(Path(folder)))


class _Simulation:
    """One node that runs what was submitted; checks each claim."""

    def __init__(self, database: Database, caps: dict[str, int | None]) -> None:
        self.jobs, self.node, self.caps = SqlJobs(database), Node(SqlClaims(database)), caps
        self.waiting: dict[str, Job] = {}
        self.claimed: set[str] = set()

    async def play(self, steps: list[object]) -> None:
        for step in steps:
            if isinstance(step, list):
                for project, vcpus, priority in step:
                    (job,) = await submit(self.jobs, project, vcpus=vcpus, priority=priority)
                    self.waiting[job.id] = job
            elif isinstance(step, int):
                if step < len(self.node.held):
                    await self.node.end(step)
            else:
                await self.claim()
        # Without new jobs, each end makes room: no more ends than jobs are needed.
        for _ in range(len(self.waiting) + len(self.node.held)):
            while await self.claim():
                pass
            if self.node.held:
                await self.node.end()
        assert not self.waiting

    async def claim(self) -> bool:
        before = Counter(dict.fromkeys(PROJECTS, 0))
        for held in self.node.held:
            before[held.project] += held.resources.vcpus
        running = Counter(held.project for held in self.node.held)
        job = await self.node.claim()
        if job is None:
            return False
        assert job.id not in self.claimed
        self.claimed.add(job.id)
        cap = self.caps[job.project]
        assert cap is None or running[job.project] < cap
        mine = [each for each in self.waiting.values() if each.project == job.project]
        assert job.id == min(mine, key=lambda each: (-each.priority, each.id)).id
        may_start = {each.project for each in self.waiting.values() if self._may_start(each.project, running)}
        assert before[job.project] == min(before[project] for project in may_start)
        del self.waiting[job.id]
        return True

    def _may_start(self, project: str, running: Counter[str]) -> bool:
        cap = self.caps[project]
        return cap is None or running[project] < cap
