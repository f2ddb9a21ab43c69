"""Records of scripts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.scripts import SqlScripts
from belljar.model.errors import InvalidRequest
from belljar.model.script import Dependencies, Script
from support.job_queue import begin, ended, queued, take

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def scripts(database: Database) -> SqlScripts:
    return SqlScripts(database)


def script(name: str, project: str = "mine", seconds: int = 0) -> Script:
    return Script(
        id=name * 64,
        project=project,
        name=f"{name}.py",
        language="python",
        entrypoint="main.py",
        size_bytes=1 << 40,
        file_count=1,
        created_at=EPOCH + timedelta(seconds=seconds),
    )


async def test_the_same_script_is_recorded_once_in_each_project(scripts: SqlScripts) -> None:
    first = await scripts.add(script("a"))
    assert await scripts.add(script("a", seconds=9)) == first
    other = await scripts.add(script("a", project="other"))
    assert await scripts.get("mine", first.id) == first
    assert await scripts.get("other", first.id) == other
    assert await scripts.get("third", first.id) is None


async def test_what_a_script_needs_is_learnt_of_one_that_an_older_belljar_took(scripts: SqlScripts) -> None:
    assert (await scripts.add(script("a"))).dependencies is None
    needs = Dependencies(kind="pypi", requirements=("numpy", "requests<3"), runtime=">=3.11", origin="main.py")
    again = await scripts.add(script("a", seconds=9).model_copy(update={"dependencies": needs}))
    assert (again.created_at, again.dependencies) == (EPOCH, needs)
    assert await scripts.get("mine", again.id) == again


async def test_pages_hold_every_script_once_the_newest_first(scripts: SqlScripts) -> None:
    for name, seconds in zip("abcdef", (0, 1, 1, 1, 2, 3), strict=True):  # three of the same moment
        await scripts.add(script(name, seconds=seconds))
    await scripts.add(script("0", project="other"))
    seen, cursor = [], None
    while True:
        page, cursor = await scripts.list("mine", 2, cursor)
        seen += [each.name[0] for each in page]
        if cursor is None:
            break
    assert seen == list("fedcba")
    with pytest.raises(InvalidRequest):
        await scripts.list("mine", 2, "nonsense")


async def test_a_script_is_used_while_a_project_has_it(scripts: SqlScripts) -> None:
    await scripts.add(script("a"))
    await scripts.add(script("a", project="other"))
    assert await scripts.delete("mine", "a" * 64) is True
    assert await scripts.delete("mine", "a" * 64) is None
    assert await scripts.used("a" * 64)
    assert await scripts.delete("other", "a" * 64) is False
    assert not await scripts.used("a" * 64)


async def test_a_script_is_used_until_the_last_job_that_runs_it_has_ended(
    scripts: SqlScripts, jobs: SqlJobs, claims: SqlClaims
) -> None:
    await jobs.insert(queued(script_id="a" * 64))
    assert await scripts.used("a" * 64)
    job = await take(claims)
    assert job is not None and await begin(claims, job)
    assert await scripts.used("a" * 64)
    await claims.finish("w1", job, ended())
    assert not await scripts.used("a" * 64)
