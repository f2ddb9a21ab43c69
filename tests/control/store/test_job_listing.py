"""Lists of jobs: each filter alone and together, pages, and searches that stop and go on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from belljar.control.store import job_listing
from belljar.control.store.database import Database
from belljar.control.store.job_listing import JobFilter, SqlJobListing
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.scripts import SqlScripts
from belljar.model.job import Job
from belljar.model.states import Status
from support.job_queue import queued, uploaded


@pytest.fixture
async def listed(database: Database, jobs: SqlJobs) -> list[Job]:
    """Six jobs, the newest first: three languages, two labels, one is cancelled."""
    await SqlScripts(database).add(uploaded(name="Report.py"))
    made = []
    for number in range(6):
        labels = {"team": "red" if number % 2 else "blue"}
        language = ("python", "shell", "node")[number % 3]
        script = ("a" if language == "python" else "b") * 64
        made.append(queued(labels=labels, language=language, script_id=script, entrypoint=f"run{number}.x"))
        await jobs.insert(made[-1])
    await jobs.insert(queued(project="other", labels={"team": "red"}))
    await jobs.cancel("mine", made[0].id)
    return made[::-1]


async def ids(database: Database, **which: object) -> list[str]:
    page = await SqlJobListing(database).page("mine", JobFilter(**which))  # type: ignore[arg-type]
    assert page.next_cursor is None and page.searched_to is None
    return [job.id for job in page.jobs]


async def test_filters_alone_and_together(database: Database, listed: list[Job]) -> None:
    every = [job.id for job in listed]
    assert await ids(database) == every
    assert await ids(database, status=Status.CANCELLED) == every[5:]
    assert await ids(database, language="python") == [every[2], every[5]]
    assert await ids(database, label="team=red") == every[0::2]
    assert await ids(database, label="team") == every and await ids(database, label="team=green") == []
    assert await ids(database, label="team=blue", status=Status.CANCELLED) == every[5:]
    assert await ids(database, label="team=blue", status=Status.CANCELLED, language="python", text="run0") == every[5:]
    now = datetime.now(UTC)
    assert await ids(database, since=now - timedelta(hours=1)) == every
    assert await ids(database, before=now - timedelta(hours=1)) == []


async def test_text_is_found_in_names_entrypoints_and_at_the_beginning_of_ids(
    database: Database, listed: list[Job]
) -> None:
    assert await ids(database, text="report") == [listed[2].id, listed[5].id], "the name that it was uploaded with"
    assert await ids(database, text="RUN4") == [listed[1].id]
    assert await ids(database, text=listed[3].id.lower()) == [listed[3].id]
    for text in ("%", "_", "'", '"; DROP TABLE jobs', "\0"):
        assert await ids(database, text=text) == []


async def test_an_entry_has_the_name_and_the_end_of_its_job(database: Database, listed: list[Job]) -> None:
    page = await SqlJobListing(database).page("mine", JobFilter())
    last = page.jobs[5]
    assert (last.name, last.language, last.image, last.status) == ("Report.py", "python", "python", Status.CANCELLED)
    assert (page.jobs[4].name, page.jobs[4].labels) == ("run1.x", {"team": "red"})


async def test_pages_follow_each_other(database: Database, listed: list[Job]) -> None:
    found, cursor = [], None
    for _ in range(3):
        page = await SqlJobListing(database).page("mine", JobFilter(), limit=2, cursor=cursor)
        found += [job.id for job in page.jobs]
        cursor = page.next_cursor
    assert cursor is None and found == [job.id for job in listed]


async def test_a_search_reads_a_bounded_number_of_jobs_and_goes_on(
    database: Database, listed: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_listing, "SCANNED_JOBS", 2)
    found, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await SqlJobListing(database).page("mine", JobFilter(language="python"), cursor=cursor)
        found += [job.id for job in page.jobs]
        cursor, pages = page.next_cursor, pages + 1
        assert (page.searched_to is None) == (cursor is None)
    assert found == [listed[2].id, listed[5].id] and pages == 4


async def test_no_list_sorts_or_scans_jobs(database: Database, listed: list[Job]) -> None:
    plans: list[str] = []

    def explain(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("SELECT"):
            plan = cursor.connection.cursor()  # type: ignore[attr-defined]
            plan.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in plan.fetchall())

    event.listen(database._engine, "before_cursor_execute", explain)
    for which in (JobFilter(), JobFilter(status=Status.QUEUED), JobFilter(label="team"), JobFilter(text="x")):
        await SqlJobListing(database).page("mine", which)
    # The last step sorts no more than the rows of a page, or of a search.
    assert not [line for line in plans if line.startswith("SCAN jobs")], plans


async def test_a_label_and_a_status_that_few_jobs_have_together_read_a_bounded_number(
    database: Database, listed: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_listing, "SCANNED_JOBS", 2)
    which = JobFilter(label="team=blue", status=Status.CANCELLED)
    listing = SqlJobListing(database)
    first = await listing.page("mine", which)
    assert (first.jobs, first.next_cursor) == ([], listed[3].id)
    second = await listing.page("mine", which, cursor=first.next_cursor)
    assert ([job.id for job in second.jobs], second.next_cursor) == ([listed[5].id], None)
