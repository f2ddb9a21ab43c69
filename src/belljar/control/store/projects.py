"""The records of projects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.projects.project import Project
from belljar.control.store.database import Database
from belljar.control.store.schema import projects
from belljar.model.errors import NotFound, ProjectConflict


class SqlProjects:
    """The projects in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, name: str) -> Project:
        """Return a project. Raises NotFound."""
        return await self._database.reading(lambda connection: read_project(connection, name))

    async def exists(self, name: str) -> bool:
        """Return whether there is a project of this name that is not being removed."""
        query = select(projects.c.name).where(projects.c.name == name, projects.c.removed_at.is_(None))
        return await self._database.reading(lambda connection: connection.execute(query).first()) is not None

    async def suspended(self) -> Sequence[str]:
        """Return the names of the suspended projects."""
        query = select(projects.c.name).where(projects.c.suspended_at.is_not(None))
        return await self._database.reading(lambda connection: connection.execute(query).scalars().all())


def read_project(connection: Connection, name: str) -> Project:
    """Return a project. Raises NotFound."""
    row = connection.execute(select(projects).where(projects.c.name == name)).one_or_none()
    if row is None:
        raise missing_project(name)
    return project_of(row)


def missing_project(name: str) -> NotFound:
    """Return the error for a name that no project has, or one that the caller may not see."""
    return NotFound(f"there is no project {name[:80]!r}; list them with GET /v1/projects or belljar project ls")


def add_project(connection: Connection, name: str) -> bool:
    """Create a project unless it exists. Return whether it was created. Raises ProjectConflict."""
    query = insert(projects).values(name=name, created_at=datetime.now(UTC)).on_conflict_do_nothing()
    if connection.execute(query).rowcount:
        return True
    if read_project(connection, name).removed_at is not None:
        raise being_removed(name)
    return False


def being_removed(name: str) -> ProjectConflict:
    """Return the error for a project whose data is being removed."""
    return ProjectConflict(f"the project {name!r} is being removed; wait until it is gone, or use another name")


def project_of(row: Row[Any]) -> Project:
    """Return the project of a row of the table `projects`."""
    return Project(**row._mapping)
