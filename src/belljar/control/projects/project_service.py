"""Creates, lists, suspends, resumes and removes projects."""

from __future__ import annotations

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.control.projects.project import Project
from belljar.control.projects.project_request import NewProject, ProjectChange
from belljar.control.store.keys import SqlKeys
from belljar.control.store.projects import SqlProjects, missing_project
from belljar.model.errors import InvalidOption

log = structlog.get_logger()


class ProjectService:
    """The operations of the API and the command line on projects. Routes have checked that the caller may do it."""

    def __init__(self, projects: SqlProjects, keys: SqlKeys, changes: Changes) -> None:
        self._projects = projects
        self._keys = keys
        self._changes = changes

    async def create(self, by: Identity, new: NewProject) -> Project:
        """Create a project. Raises ProjectConflict when there is one of this name."""
        project = await self._projects.create(new.name)
        log.info("project_created", project=new.name, by=by.id)
        return project

    async def page(self, by: Identity, *, limit: int, after: str | None) -> tuple[list[Project], str | None]:
        """Return a page of the projects that the caller may see, by name, and the name after which the next begins."""
        if by.only_project is not None:
            return [await self._projects.get(by.only_project)], None
        return await self._projects.page(limit, after)

    async def get(self, by: Identity, name: str) -> Project:
        """Return a project. Raises NotFound, also for one that the caller may not see."""
        if not by.may_see(name):
            raise missing_project(name)
        return await self._projects.get(name)

    async def change(self, by: Identity, name: str, change: ProjectChange) -> Project:
        """Suspend a project: refuse its keys, and start none of its jobs; or resume it.

        Running jobs of a suspended project go on, unless `cancel_running`. Raises NotFound, InvalidOption;
        ProjectConflict when a project is resumed that is being removed.
        """
        if change.suspended:
            return await self._suspend(by, name, cancel_running=change.cancel_running)
        if change.cancel_running:
            raise InvalidOption("cancel_running goes with suspended: true only", option="cancel_running")
        project = await self._projects.resume(name)
        await self._changed()
        self._changes.notify_queued()
        log.info("project_resumed", project=name, by=by.id)
        return project

    async def _suspend(self, by: Identity, name: str, *, cancel_running: bool) -> Project:
        project = await self._projects.suspend(name, cancel_running=cancel_running)
        await self._changed()
        if cancel_running:
            self._changes.notify_cancelled()
        log.info("project_suspended", project=name, by=by.id, cancel_running=cancel_running)
        return project

    async def remove(self, by: Identity, name: str) -> Project:
        """Revoke the project's keys, and mark it for maintenance, which removes its data. Raises NotFound.

        Raises ProjectConflict while jobs of it run, or while it has an operator's key.
        """
        project, revoked = await self._projects.begin_removal(name)
        await self._changed()
        for key_id in revoked:
            self._changes.notify_revoked(key_id)
        log.info("project_removal_started", project=name, by=by.id, revoked_keys=len(revoked))
        return project

    async def _changed(self) -> None:
        self._keys.forget()
        self._changes.set_suspended(await self._projects.suspended())
