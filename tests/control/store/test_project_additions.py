"""Nothing is added to a project that does not exist or is being removed: the next one of its name would have it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from belljar.control.store.database import Database
from belljar.control.store.projects import SqlProjects
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.secrets import Sealed, SqlSecrets
from belljar.model.errors import NotFound, ProjectConflict
from belljar.model.quotas import ProjectQuotas

Add = Callable[[Database, str], Awaitable[None]]


async def set_secret(database: Database, project: str) -> None:
    sealed = Sealed("key", b"sealed")
    await SqlSecrets(database).put(project, "TOKEN", size_bytes=5, fits_variable=True, seal=lambda *_: sealed)


async def set_quotas(database: Database, project: str) -> None:
    await SqlQuotas(database).set(project, ProjectQuotas(max_queued_jobs=3))


async def change_quotas(database: Database, project: str) -> None:
    await SqlQuotas(database).change(project, {"max_queued_jobs": 3})


@pytest.mark.parametrize("add", [set_secret, set_quotas, change_quotas])
async def test_nothing_is_added_to_a_project_that_is_missing_or_being_removed(database: Database, add: Add) -> None:
    projects = SqlProjects(database)
    await projects.create("shop")
    await projects.begin_removal("shop")
    with pytest.raises(ProjectConflict, match="being removed"):
        await add(database, "shop")
    with pytest.raises(NotFound, match="no project 'nobody'"):
        await add(database, "nobody")
    assert await SqlSecrets(database).list("shop") == []
    assert await SqlQuotas(database).get("shop") == ProjectQuotas()
