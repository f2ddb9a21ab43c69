"""Jobs as callers store, read, list and cancel them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.control.store.claims import SqlClaims
from belljar.control.store.cursor import decode, encode
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.scripts import SqlScripts
from belljar.model.errors import InvalidRequest, NotFound
from belljar.model.job import Job
from belljar.model.states import TERMINAL, Status
from support.job_queue import begin, ended, queued, take, uploaded


def ids(found: tuple[list[Job], str | None]) -> list[str]:
    return [job.id for job in found[0]]


async def test_an_idempotency_key_gives_the_first_job_back(jobs: SqlJobs) -> None:
    first = await jobs.insert(queued(idempotency_key="k", labels={"a": "b"}))
    again = await jobs.insert(queued(idempotency_key="k", labels={"c": "d"}, env={"X": "y"}))
    assert again == first == await jobs.by_key("mine", "k")
    assert await jobs.list("mine", label="c") == ([], None)
    assert await jobs.counts() == {Status.QUEUED: 1}


async def test_many_with_one_idempotency_key_at_once_make_one_job(jobs: SqlJobs) -> None:
    kept = await asyncio.gather(*(jobs.insert(queued(idempotency_key="k")) for _ in range(10)))
    assert len({job.id for job in kept}) == 1
    assert await jobs.counts() == {Status.QUEUED: 1}


async def test_an_idempotency_key_is_a_projects_own(jobs: SqlJobs) -> None:
    mine = await jobs.insert(queued(idempotency_key="k"))
    other = await jobs.insert(queued(idempotency_key="k", project="other"))
    assert mine.id != other.id
    assert await jobs.by_key("third", "k") is None


async def test_another_projects_job_is_not_there(jobs: SqlJobs) -> None:
    job = await jobs.insert(queued())
    assert await jobs.get("other", job.id) is None
    assert await jobs.cancel("other", job.id) is None
    assert await jobs.list("other") == ([], None)
    assert await jobs.get(None, job.id) == await jobs.get("mine", job.id) == job


async def test_cancelling_a_queued_job_ends_it_at_once(jobs: SqlJobs, claims: SqlClaims) -> None:
    job = await jobs.insert(queued())
    after = await jobs.cancel("mine", job.id)
    assert after is not None and after.status is Status.CANCELLED and after.finished_at is not None
    assert await take(claims) is None
    assert await jobs.cancel("mine", job.id) == after


@pytest.mark.parametrize("started", [False, True])
async def test_cancelling_a_job_that_is_held_leaves_its_end_to_its_worker(
    jobs: SqlJobs, claims: SqlClaims, started: bool
) -> None:
    await jobs.insert(queued())
    job = await take(claims)
    assert job is not None
    if started:
        await begin(claims, job)
    after = await jobs.cancel("mine", job.id)
    assert after is not None and after.cancel_requested
    assert after.status is (Status.RUNNING if started else Status.STARTING)
    assert await claims.finish("w1", job, ended(Status.CANCELLED))


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_cancelling_what_has_ended_changes_nothing(jobs: SqlJobs, claims: SqlClaims, status: Status) -> None:
    await jobs.insert(queued())
    job = await take(claims)
    assert job is not None and await begin(claims, job)
    await claims.finish("w1", job, ended(status))
    before = await jobs.get("mine", job.id)
    assert await jobs.cancel("mine", job.id) == before == await jobs.get("mine", job.id)


async def test_pages_hold_every_job_once_the_newest_first(jobs: SqlJobs) -> None:
    kept = [(await jobs.insert(queued())).id for _ in range(7)]
    found, cursor = await jobs.list("mine", limit=3)
    seen = [job.id for job in found]
    newer = await jobs.insert(queued())  # what comes meanwhile does not move the pages
    while cursor is not None:
        found, cursor = await jobs.list("mine", limit=3, cursor=cursor)
        seen += [job.id for job in found]
    assert seen == kept[::-1]
    assert newer.id not in seen
    assert (await jobs.list("mine", limit=8))[1] is None


async def test_lists_are_of_one_status_script_or_label(jobs: SqlJobs, claims: SqlClaims) -> None:
    a = await jobs.insert(queued(labels={"team": "a", "x": "1"}))
    b = await jobs.insert(queued(labels={"team": "b"}, script_id="b" * 64))
    await take(claims)
    assert ids(await jobs.list("mine", status=Status.STARTING)) == [a.id]
    assert ids(await jobs.list("mine", status=Status.QUEUED)) == [b.id]
    assert ids(await jobs.list("mine", script_id="b" * 64)) == [b.id]
    assert ids(await jobs.list("mine", label="team")) == [b.id, a.id]
    assert ids(await jobs.list("mine", label="team=a")) == [a.id]
    assert ids(await jobs.list("mine", label="team=")) == []
    assert ids(await jobs.list("mine", label="x=1", status=Status.QUEUED)) == []


@given(st.datetimes(timezones=st.just(UTC)), st.text())
def test_a_cursor_is_what_it_was_made_of(at: datetime, name: str) -> None:
    assert decode(encode(at, name)) == (at, name)


@given(st.text(max_size=40) | st.text(alphabet="ABab01-_=", max_size=40))
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    try:
        decode(cursor)
    except InvalidRequest as error:
        assert "next_cursor" in error.message


async def test_a_job_is_kept_only_while_its_script_is_there(database: Database) -> None:
    store, scripts = SqlJobs(database), SqlScripts(database)
    with pytest.raises(NotFound):
        await store.insert(queued(), needs_script=True)
    script = uploaded()
    await scripts.add(script)
    with pytest.raises(NotFound):
        await store.insert(queued(project="other"), needs_script=True)
    job = await store.insert(queued(), needs_script=True)
    assert await scripts.delete("mine", script.id) is True  # the job needs it still
    assert (await store.states([job.id, "job_none"])) == {job.id: ("queued", 0, False)}


async def test_a_job_submitted_beside_the_deletion_of_its_script_can_run_or_is_refused(database: Database) -> None:
    store, scripts = SqlJobs(database), SqlScripts(database)
    for _ in range(20):
        script = uploaded("b" * 64)
        await scripts.add(script)
        job = queued(script_id=script.id)
        kept, needed = await asyncio.gather(
            store.insert(job, needs_script=True), scripts.delete("mine", script.id), return_exceptions=True
        )
        assert isinstance(kept, NotFound) is (needed is False)
        if not isinstance(kept, BaseException):
            await store.cancel("mine", job.id)


async def test_a_page_ends_early_where_jobs_are_long(database: Database) -> None:
    store = SqlJobs(database)
    kept = [(await store.insert(queued(args=("x" * 100_000,) * 9))).id for _ in range(4)]
    found, cursor = await store.list("mine", limit=4)
    assert [job.id for job in found] == kept[:1:-1]
    rest, end = await store.list("mine", limit=4, cursor=cursor)
    assert ([job.id for job in rest], end) == (kept[1::-1], None)
