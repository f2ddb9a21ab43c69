"""The records of projects."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.audit.operation import record_nothing
from belljar.control.projects.identity import DEFAULT_PROJECT
from belljar.control.projects.project import Project
from belljar.control.projects.scopes import Scope
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.schema import HELD, jobs, keys, projects
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

    async def create(self, name: str) -> Project:
        """Create a project. Raises ProjectConflict when there is one of this name."""

        def create(connection: Connection) -> Project:
            if not add_project(connection, name):
                raise ProjectConflict(f"there is a project {name!r} already")
            record_change(connection, "project.create", name, project=name)
            return read_project(connection, name)

        return await self._database.writing(create)

    async def page(self, limit: int, after: str | None) -> tuple[list[Project], str | None]:
        """Return a page of the projects, by name, and the name after which the next page begins."""
        query = select(projects).order_by(projects.c.name).limit(limit + 1)
        if after is not None:
            query = query.where(projects.c.name > after)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        page = [project_of(row) for row in rows[:limit]]
        return page, page[-1].name if len(rows) > limit else None

    async def suspend(self, name: str, *, cancel_running: bool) -> Project:
        """Suspend a project, and with `cancel_running` request that its running jobs are cancelled. Raises NotFound."""
        now = datetime.now(UTC)
        query = projects.update().where(projects.c.name == name, projects.c.suspended_at.is_(None))
        running = jobs.update().where(HELD, jobs.c.project == name).values(cancel_requested=True)

        def suspend(connection: Connection) -> Project:
            connection.execute(query.values(suspended_at=now))
            if cancel_running:
                connection.execute(running)
            details = {"suspended": True, "cancel_running": cancel_running}
            record_change(connection, "project.change", name, project=name, **details)
            return read_project(connection, name)

        return await self._database.writing(suspend)

    async def resume(self, name: str) -> Project:
        """End the suspension of a project. Raises NotFound, ProjectConflict when it is being removed."""

        def resume(connection: Connection) -> Project:
            if read_project(connection, name).removed_at is not None:
                raise being_removed(name)
            connection.execute(projects.update().where(projects.c.name == name).values(suspended_at=None))
            record_change(connection, "project.change", name, project=name, suspended=False)
            return read_project(connection, name)

        return await self._database.writing(resume)

    async def begin_removal(self, name: str) -> tuple[Project, list[str]]:
        """Suspend the project for ever and revoke its keys. Return it, and the ids of the revoked keys.

        From then on maintenance removes its data (project_removal.py). Raises NotFound; ProjectConflict while jobs of
        it run, while it has an operator's key, and for the project `default`.
        """
        now = datetime.now(UTC)
        running = select(func.count()).select_from(jobs).where(HELD, jobs.c.project == name)
        own_keys = (keys.c.project == name, keys.c.revoked_at.is_(None))
        is_valid = keys.c.expires_at.is_(None) | (keys.c.expires_at > now)

        if name == DEFAULT_PROJECT:
            raise ProjectConflict(f"the project {name!r} has this server's own key, and stays")

        def remove(connection: Connection) -> tuple[Project, list[str]]:
            project = read_project(connection, name)
            if project.removed_at is not None:
                record_nothing("project.remove")
                return project, []
            if number := connection.execute(running).scalar_one():
                raise ProjectConflict(
                    f"{number} jobs of the project {name!r} run; cancel them (belljar project set {name} --suspend "
                    "--cancel-running), and try again when they have ended",
                    running_jobs=number,
                )
            valid = connection.execute(select(keys.c.id, keys.c.extra_scopes).where(*own_keys, is_valid)).all()
            operators = [row.id for row in valid if Scope.ADMIN in row.extra_scopes]
            if operators:
                raise ProjectConflict(
                    f"the project {name!r} has an operator's key, {operators[0]}; revoke it before, if it is not the "
                    "one that this server needs"
                )
            connection.execute(keys.update().where(*own_keys).values(revoked_at=now))
            suspended_at = project.suspended_at or now
            changed = projects.update().where(projects.c.name == name)
            connection.execute(changed.values(suspended_at=suspended_at, removed_at=now))
            record_change(connection, "project.remove", name, project=name, revoked_keys=len(valid))
            return read_project(connection, name), [row.id for row in valid]

        return await self._database.writing(remove)

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


def require_project(connection: Connection, name: str) -> None:
    """Raise NotFound, or ProjectConflict when the project is being removed: nothing may be added to it any more."""
    if read_project(connection, name).removed_at is not None:
        raise being_removed(name)


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
