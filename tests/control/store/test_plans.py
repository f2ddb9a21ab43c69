"""The queries use their indexes: SQLite's plan of the statements that belljar sends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import event

from belljar.control.store.claims import SqlClaims
from belljar.control.store.counters import SqlCounters
from belljar.control.store.cursor import encode
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.quotas import HOLDING_QUOTAS, SqlQuotas
from belljar.control.store.retention import SqlRetention
from belljar.control.store.scripts import SqlScripts
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from support.job_queue import begin, lose_all, queued, take


class Plans:
    """What SQLite says it will do for each statement on `jobs` that was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []
        self.lines: list[str] = []

    def hear(self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        named = any(table in statement for table in ("jobs", "scripts", "project_", "node_counters"))
        if not many and named and not statement.startswith("EXPLAIN"):
            self.sent.append((statement, parameters))
            plan = cursor.connection.cursor()
            plan.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            self.lines += [row[3] for row in plan.fetchall()]
            plan.close()

    def take(self, sorts: str | None = None) -> str:
        """The lines since the last call; raises AssertionError for what no query may do but `sorts`."""
        lines, self.lines = self.lines, []
        assert lines, "nothing was sent"
        for line in lines:
            assert "TEMP B-TREE" not in line or line == sorts, lines
            assert not line.startswith("SCAN jobs") or "ix_jobs_queue" in line, lines
        return "\n".join(lines)


@pytest.fixture
def plans(database: Database) -> Iterator[Plans]:
    plans = Plans()
    event.listen(database._engine, "before_cursor_execute", plans.hear)
    yield plans


async def test_a_claim_reads_projects_in_turn_and_each_queue_in_its_order_and_no_ended_job(
    plans: Plans, jobs: SqlJobs, claims: SqlClaims
) -> None:
    for images, expected in ((None, False), (["a", "b"], False), (None, True), (["a", "b"], True)):
        await jobs.insert(queued())
        plans.lines.clear()
        largest = NodeLimits(vcpus=8, memory_mb=8192)
        found = await claims.claim(
            "w", vcpus=1, memory_mb=256, lease_seconds=9, largest=largest, images=images, expected=expected
        )
        assert found is not None
        # The projects with queued jobs are sorted; nothing else is.
        assert plans.lines.count("USE TEMP B-TREE FOR ORDER BY") == 1
        plan = plans.take(sorts="USE TEMP B-TREE FOR ORDER BY")
        assert "SCAN c USING COVERING INDEX ix_project_counters_queued" in plan and "CO-ROUTINE" in plan
        for name, index in (
            ("n", "PRIMARY KEY (worker=? AND project=?)"),
            ("q", "PRIMARY KEY (project=?)"),
            ("u", "PRIMARY KEY (project=? AND day=?)"),
            ("j", "COVERING INDEX ix_jobs_queue (project=?)"),
        ):
            assert f"SEARCH {name} USING {index}" in plan
        assert "ix_jobs_status" not in plan and "ix_jobs_project" not in plan


async def test_a_claim_of_a_job_that_was_found_sorts_nothing(plans: Plans, jobs: SqlJobs, claims: SqlClaims) -> None:
    await jobs.insert(queued())
    plans.sent.clear()
    await claims.claim("w", vcpus=1, memory_mb=256, lease_seconds=9)
    write = next(statement for statement, _ in plans.sent if statement.lstrip().startswith("UPDATE jobs"))
    assert "ORDER BY" not in write and "EXISTS" in write


async def test_quotas_and_usage_are_found_by_project(plans: Plans, database: Database) -> None:
    quotas, counters = SqlQuotas(database), SqlCounters(database)
    await quotas.use("mine")
    await quotas.get("mine")
    await quotas.days("mine", 7)
    await quotas.at_limit(dict.fromkeys((quota.value for quota in HOLDING_QUOTAS), 5))
    assert "SCAN jobs" not in plans.take()
    await counters.differences("mine")
    plan = plans.take(sorts="USE TEMP B-TREE FOR GROUP BY")  # the held jobs, by worker
    assert "SCAN" not in plan and "ix_jobs_status (project=? AND status=?)" in plan
    await SqlRetention(database).remove_ended(Status.FAILED, datetime.now(UTC), 10, "mine")
    assert "ix_jobs_status (project=? AND status=? AND id<?)" in plans.take()


async def test_what_workers_look_after_is_found_among_held_jobs_alone(
    plans: Plans, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued())
    job = await take(claims)
    assert job is not None and await begin(claims, job)
    plans.lines.clear()
    await claims.cancel_requested("w1")
    assert "ix_jobs_held (worker=?)" in plans.take()
    await lose_all(claims, "nobody")
    assert "ix_jobs_held (worker=?)" in plans.take()
    await claims.expire()
    assert "USING INDEX ix_jobs_held" in "".join(plans.lines)
    plans.lines.clear()
    await claims.fail_without_image({"a"}, 30)
    assert "ix_jobs_queue" in plans.take()
    await jobs.image_digests()
    assert {line for line in plans.lines if "SCAN" in line} == {
        "SCAN jobs USING COVERING INDEX ix_jobs_queue",
        "SCAN jobs USING INDEX ix_jobs_held",
        "SCAN sandboxes USING INDEX ix_sandboxes_live",
    }


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        ({}, "ix_jobs_project (project=?"),
        ({"status": Status.FAILED}, "ix_jobs_status (project=? AND status=?"),
        ({"script_id": "a" * 64}, "ix_jobs_script (script_id=?"),
        ({"label": "team=a"}, "ix_job_labels_value (project=? AND name=? AND value=?"),
        ({"label": "team"}, "ix_job_labels_name (project=? AND name=?"),
    ],
)
@pytest.mark.parametrize("cursor", [None, "job_5"])
async def test_a_list_reads_its_own_index_from_the_newest_on(
    plans: Plans, jobs: SqlJobs, filters: dict[str, Any], index: str, cursor: str | None
) -> None:
    await jobs.list("mine", cursor=cursor, **filters)
    assert index in plans.take()


@pytest.mark.parametrize("cursor", [None, encode(datetime(2026, 1, 1, tzinfo=UTC), "a")])
async def test_scripts_are_listed_from_the_newest_on(plans: Plans, database: Database, cursor: str | None) -> None:
    await SqlScripts(database).list("mine", 10, cursor)
    range_of_moments = " AND created_at<?" if cursor else ""
    assert f"ix_scripts_newest (project=?{range_of_moments})" in plans.take()


async def test_whether_a_script_is_wanted_is_found_among_jobs_that_have_not_ended(
    plans: Plans, database: Database
) -> None:
    await SqlScripts(database).used("a" * 64)
    plan = plans.take()
    assert "ix_jobs_awaited (script_id=? AND status=?)" in plan and "ix_scripts_id (id=?)" in plan


async def test_jobs_are_not_counted_one_by_one(plans: Plans, jobs: SqlJobs, claims: SqlClaims) -> None:
    for _ in range(3):
        await jobs.insert(queued())
    await take(claims)
    plans.lines.clear()
    assert await jobs.counts() == {Status.QUEUED: 2, Status.STARTING: 1}
    assert plans.lines == []
