"""/v1/sandboxes/{id}/pause, resume, snapshot and fork, and /v1/snapshots."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.authentication import end_error
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ProjectDep, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.routes.sandboxes import Wait
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.freeze_service import resume_error
from belljar.control.sandboxes.request import ForkRequest, SnapshotRequest
from belljar.model.sandbox import Sandbox, SandboxStatus

router = APIRouter(prefix="/v1", tags=["sandboxes"])

_QUEUED: dict[int | str, dict[str, Any]] = {202: {"description": "It is queued; its machine does not run yet."}}
_BEGINNING = (SandboxStatus.CREATING, SandboxStatus.RESUMING)


@router.post("/sandboxes/{sandbox_id}/pause", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.pause")
async def pause_sandbox(sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Keep the sandbox's memory and disks, end its machine, and return it. Its commands go on when it is resumed."""
    return json_response((await services.freezing.pause(project, sandbox_id)).public())


@router.post("/sandboxes/{sandbox_id}/resume", responses=_QUEUED, dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.resume")
async def resume_sandbox(sandbox_id: str, services: ServicesDep, identity: IdentityDep, wait: Wait = 60) -> Response:
    """Continue a paused sandbox, and return it as soon as its machine takes commands, or after `wait` seconds (202)."""
    sandbox = await services.freezing.request_resume(identity.project, sandbox_id)
    sandbox = await _begun(services, identity, sandbox, wait)
    if sandbox.status is SandboxStatus.RESUMING:
        return json_response(sandbox.public(), 202)
    if sandbox.status is SandboxStatus.PAUSED:
        raise resume_error(sandbox)
    return json_response(sandbox.public())


@router.post(
    "/sandboxes/{sandbox_id}/snapshot",
    status_code=201,
    openapi_extra=body_of(SnapshotRequest, required=False),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("sandbox.snapshot")
async def snapshot_sandbox(request: Request, sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Keep a copy of the sandbox as it is now, from which new ones can be made. The sandbox itself goes on."""
    options = await read_small(request, SnapshotRequest, required=False)
    keep = options.secrets == "keep"
    return json_response((await services.freezing.snapshot(project, sandbox_id, keep_secrets=keep)).public(), 201)


@router.post(
    "/sandboxes/{sandbox_id}/fork",
    status_code=201,
    responses=_QUEUED,
    openapi_extra=body_of(ForkRequest, required=False),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("sandbox.fork")
async def fork_sandbox(
    request: Request, sandbox_id: str, services: ServicesDep, identity: IdentityDep, wait: Wait = 60
) -> Response:
    """Make copies of the sandbox that go on from where it is now, with their memory; return them when they run (201).

    After `wait` seconds they are returned as they are (202).
    """
    options = await read_small(request, ForkRequest, required=False)
    forks = await services.freezing.fork(identity.project, sandbox_id, options)
    forks = await asyncio.gather(*(_begun(services, identity, each, wait) for each in forks))
    is_queued = any(each.status is SandboxStatus.CREATING for each in forks)
    return json_response({"sandboxes": [each.public() for each in forks]}, 202 if is_queued else 201)


async def _begun(services: Services, identity: Identity, sandbox: Sandbox, seconds: float) -> Sandbox:
    """Return the sandbox once it has begun to run, or did not, at most so many seconds later."""
    if sandbox.status not in _BEGINNING or not seconds:
        return sandbox

    def ended() -> bool:
        return end_error(identity, services.changes) is not None or services.changes.stopping

    return await services.sandboxes.wait(
        identity.project, sandbox.id, seconds, lambda found: found.status not in _BEGINNING, ended=ended
    )


@router.get("/snapshots", dependencies=[require(Scope.SANDBOXES)])
async def list_snapshots(
    services: ServicesDep, project: ProjectDep, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """List the snapshots of the project's sandboxes, newest first."""
    found, next_cursor = await services.freezing.snapshots(project, limit=limit, cursor=cursor)
    return json_response({"snapshots": [each.public() for each in found], "next_cursor": next_cursor})


@router.get("/snapshots/{snapshot_id}", dependencies=[require(Scope.SANDBOXES)])
async def get_snapshot(snapshot_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Return the snapshot."""
    return json_response((await services.freezing.get_snapshot(project, snapshot_id)).public())


@router.delete("/snapshots/{snapshot_id}", status_code=204, dependencies=[require(Scope.SANDBOXES)])
@audited("snapshot.delete")
async def delete_snapshot(snapshot_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Delete the snapshot. Sandboxes that were made from it go on."""
    await services.freezing.delete_snapshot(project, snapshot_id)
    return Response(status_code=204)
