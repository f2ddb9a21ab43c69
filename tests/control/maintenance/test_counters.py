"""Counters that somebody changed by hand are found and corrected; jobs go by the retention of their project."""

from __future__ import annotations

import pytest
import structlog

from belljar.control.maintenance.schedule import ServiceOutcome
from belljar.control.store.counters import SqlCounters
from belljar.control.store.projects import add_project
from belljar.control.store.quotas import SqlQuotas
from belljar.model.ids import first_id
from belljar.model.quotas import ProjectQuotas
from belljar.model.states import Status
from support.data_folder import Folder, days_ago
from support.job_queue import queued, take

PROJECTS = ("short", "long", "other")


def id_of(project: str, age: float) -> str:
    """Return the id of a job that was submitted an hour before it ended so many days ago."""
    return first_id("job", days_ago(age + (PROJECTS.index(project) + 1) / 24))


async def repaired(folder: Folder, *, dry_run: bool = False) -> ServiceOutcome:
    folder.sql("DELETE FROM maintenance WHERE service = 'counters'")  # it is due again
    outcome: ServiceOutcome = (await folder.sweep(dry_run=dry_run))["counters"]
    return outcome


@pytest.mark.parametrize(
    ("change", "counter"),
    [
        ("UPDATE project_counters SET queued_jobs = queued_jobs + 5", "queued_jobs"),
        ("UPDATE project_counters SET held_jobs = 0", "held_jobs"),
        ("UPDATE project_counters SET held_vcpus = -1", "held_vcpus"),
        ("UPDATE project_counters SET job_bytes = 3", "job_bytes"),
        ("UPDATE project_counters SET script_bytes = 0", "script_bytes"),
        ("DELETE FROM project_counters", "queued_jobs"),
        ("DELETE FROM node_counters", "vcpus_by_worker"),
        ("INSERT INTO node_counters VALUES ('gone', 'mine', 7, 0)", "vcpus_by_worker"),
    ],
)
async def test_a_wrong_counter_is_reported_and_corrected(folder: Folder, change: str, counter: str) -> None:
    await folder.database.writing(lambda connection: add_project(connection, "mine"))
    await folder.script()
    for _ in range(3):
        await folder.jobs.insert(queued(vcpus=2))
    assert await take(folder.claims)
    counters = SqlCounters(folder.database)
    assert await counters.differences("mine") == {}
    folder.sql(change)
    findings = (await repaired(folder, dry_run=True)).result.findings
    assert any(f"the counter {counter} of the project mine was" in finding for finding in findings)
    assert await counters.differences("mine") != {}
    with structlog.testing.capture_logs() as events:
        await repaired(folder)
    found = [event for event in events if event["event"] == "counter_repaired"]
    assert counter in {event["counter"] for event in found} and {event["project"] for event in found} == {"mine"}
    assert await counters.differences("mine") == {}
    with structlog.testing.capture_logs() as events:
        await repaired(folder)
    assert "counter_repaired" not in {event["event"] for event in events}
    assert await take(folder.claims)  # the queue goes on


async def test_counters_of_idle_projects_on_workers_are_removed(folder: Folder) -> None:
    await folder.end(Status.FAILED, 0)
    await folder.jobs.insert(queued())
    assert await take(folder.claims, "busy")
    folder.sql("UPDATE node_counters SET changed_at = 0")
    await repaired(folder)
    assert folder.sql("SELECT worker FROM node_counters") == [("busy",)]


async def test_jobs_go_by_the_retention_of_their_project_where_it_is_shorter(folder: Folder) -> None:
    quotas = SqlQuotas(folder.database)
    for project, days in (("short", 3.0), ("long", 300.0)):
        await folder.database.writing(lambda connection, name=project: add_project(connection, name))
        await quotas.set(project, ProjectQuotas(keep_jobs_days=days))
    jobs = {
        (project, age): (await folder.end(Status.SUCCEEDED, age, project=project, id=id_of(project, age))).id
        for project in PROJECTS
        for age in (1, 5, 20)
    }
    assert (await folder.sweep(dry_run=True))["jobs"].result.removed.count == 4
    assert (await folder.sweep())["jobs"].result.removed.count == 4
    left = {key for key, job_id in jobs.items() if await folder.jobs.get(None, job_id) is not None}
    assert left == {("short", 1), ("long", 1), ("long", 5), ("other", 1), ("other", 5)}
