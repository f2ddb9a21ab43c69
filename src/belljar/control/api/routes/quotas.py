"""/v1/usage: what the project may use and has used. /v1/projects/{name}/quotas: the limits that an operator set."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import IdentityDep, ProjectDep, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.quotas.service import ProjectUsage
from belljar.control.store.projects import missing_project
from belljar.model.quotas import CountedQuota, ProjectQuotas

router = APIRouter(prefix="/v1", tags=["quotas"])

Days = Annotated[int, Query(ge=1, le=400, description="Number of days to return, today included.")]


@router.get("/usage", dependencies=[require(Scope.USAGE_READ)])
async def get_usage(services: ServicesDep, project: ProjectDep, days: Days = 7) -> dict[str, Any]:
    """Return each quota of the project with its limit, what is used and left, and the use of the last days (UTC)."""
    usage = await services.quotas.usage(project, days)
    return {
        "project": project,
        "at": usage.use.at.isoformat(),
        "quotas": [_quota(usage, quota) for quota in CountedQuota],
        "days": [
            {
                "date": day.day.isoformat(),
                "jobs": day.jobs,
                "vcpu_seconds": day.vcpu_seconds,
                "memory_mb_seconds": day.memory_mb_seconds,
            }
            for day in usage.days
        ],
    }


@router.get("/projects/{name}/quotas", dependencies=[require(Scope.PROJECT_ADMIN)])
async def get_quotas(services: ServicesDep, identity: IdentityDep, name: str) -> dict[str, Any]:
    """Return the quotas that were set for a project, and the limits that hold with the defaults of the settings."""
    if not identity.may_see(name):
        raise missing_project(name)
    await services.projects.get(name)
    return services.quotas.public(name, await services.quotas.quotas(name))


@router.put("/projects/{name}/quotas", openapi_extra=body_of(ProjectQuotas), dependencies=[require(Scope.ADMIN)])
@audited("project.set_quotas")
async def put_quotas(request: Request, services: ServicesDep, name: str) -> dict[str, Any]:
    """Replace the quotas of a project. Fields that are missing or null get the defaults of the settings.

    Requires an operator's key.
    """
    quotas = await read_small(request, ProjectQuotas)
    await services.quotas.set(name, quotas)
    services.changes.notify_queued()
    return services.quotas.public(name, quotas)


@router.patch("/projects/{name}/quotas", openapi_extra=body_of(ProjectQuotas), dependencies=[require(Scope.ADMIN)])
@audited("project.set_quotas")
async def change_quotas(request: Request, services: ServicesDep, name: str) -> dict[str, Any]:
    """Change those quotas of a project that the body names; null sets the default of the settings again.

    Requires an operator's key.
    """
    quotas = await services.quotas.change(name, await read_small(request, ProjectQuotas))
    services.changes.notify_queued()
    return services.quotas.public(name, quotas)


def _quota(usage: ProjectUsage, quota: CountedQuota) -> dict[str, Any]:
    limit, used, reset = usage.limits.of(quota), usage.use.used[quota], usage.use.resets_in_seconds(quota)
    # A window ends on a whole second of the database's clock.
    resets_at = None if reset is None else (usage.use.at.replace(microsecond=0) + timedelta(seconds=reset)).isoformat()
    left = None if limit is None else max(0, limit - used)
    return {"quota": quota.value, "limit": limit, "used": used, "left": left, "resets_at": resets_at}
