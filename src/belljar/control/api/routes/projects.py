"""/v1/projects: create, list, suspend, resume and remove projects."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import IdentityDep, Limit, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.project import MAX_NAME_CHARACTERS
from belljar.control.projects.project_request import NewProject, ProjectChange
from belljar.control.projects.scopes import Scope

router = APIRouter(prefix="/v1/projects", tags=["projects"])

After = Annotated[str | None, Query(max_length=MAX_NAME_CHARACTERS, description="`next_cursor` of the previous page.")]


@router.post("", status_code=201, openapi_extra=body_of(NewProject), dependencies=[require(Scope.ADMIN)])
@audited("project.create")
async def create_project(request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Create a project. Requires an operator's key."""
    new = await read_small(request, NewProject)
    return (await services.project_service.create(identity, new)).public()


@router.get("", dependencies=[require(Scope.PROJECT_ADMIN)])
async def list_projects(
    services: ServicesDep, identity: IdentityDep, limit: Limit = 50, cursor: After = None
) -> dict[str, Any]:
    """List your project; with an operator's key all projects, by name."""
    page, next_cursor = await services.project_service.page(identity, limit=limit, after=cursor)
    return {"projects": [project.public() for project in page], "next_cursor": next_cursor}


@router.get("/{name}", dependencies=[require(Scope.PROJECT_ADMIN)])
async def get_project(name: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Return the project."""
    return (await services.project_service.get(identity, name)).public()


@router.patch("/{name}", openapi_extra=body_of(ProjectChange), dependencies=[require(Scope.ADMIN)])
@audited("project.change")
async def change_project(name: str, request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Suspend or resume the project. Requires an operator's key.

    A suspended project's keys are answered with 403 and its queued jobs wait; its running jobs go on, unless
    `cancel_running` is set.
    """
    change = await read_small(request, ProjectChange)
    return (await services.project_service.change(identity, name, change)).public()


@router.delete("/{name}", status_code=202, dependencies=[require(Scope.ADMIN)])
@audited("project.remove")
async def delete_project(name: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Remove the project and all of its data. Requires an operator's key.

    Refused while jobs of it run. Its keys are revoked at once. Maintenance cancels its queued jobs, removes its jobs,
    scripts and keys, and at last the project itself, which has `removed_at` until then.
    """
    return (await services.project_service.remove(identity, name)).public()
