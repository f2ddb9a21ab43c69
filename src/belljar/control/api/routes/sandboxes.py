"""/v1/sandboxes: create, list, show, extend and delete sandboxes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.authentication import end_error
from belljar.control.api.bodies import read_medium, read_small
from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ProjectDep, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.request import Extension, SandboxChange, SandboxRequest
from belljar.model.errors import InvalidOption, MachineError
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import NoRoom

router = APIRouter(prefix="/v1/sandboxes", tags=["sandboxes"])

#: How long a deletion waits for the machine to be gone.
_END_SECONDS = 10.0
Wait = Annotated[float, Query(ge=0, le=600, description="Wait up to this many seconds for its machine.")]
KeyHeader = Annotated[str | None, Header(min_length=1, max_length=255, description="As the option idempotency_key.")]
_QUEUED: dict[int | str, dict[str, Any]] = {202: {"description": "It is queued; its machine does not run yet."}}


@router.post(
    "",
    status_code=201,
    responses=_QUEUED,
    openapi_extra=body_of(SandboxRequest),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("sandbox.create")
async def create_sandbox(
    request: Request,
    services: ServicesDep,
    identity: IdentityDep,
    wait: Wait = 60,
    idempotency_key: KeyHeader = None,
) -> Response:
    """Create a sandbox, and return it as soon as its machine takes commands (201), or after `wait` seconds (202)."""
    options = await read_medium(request, SandboxRequest)
    if idempotency_key is not None:
        if options.idempotency_key not in (None, idempotency_key):
            reason = "idempotency_key differs from the header Idempotency-Key; send one of both"
            raise InvalidOption(reason, option="idempotency_key")
        options = options.model_copy(update={"idempotency_key": idempotency_key})
    async with services.submitting.slot(identity.id):
        sandbox = await services.sandboxes.create(identity.project, options)
    request.state.body_lease.release()
    if wait and sandbox.status is SandboxStatus.CREATING:

        def ended() -> bool:
            return end_error(identity, services.changes) is not None or services.changes.stopping

        sandbox = await services.sandboxes.wait(
            identity.project, sandbox.id, wait, lambda it: it.status is not SandboxStatus.CREATING, ended=ended
        )
    _check_started(sandbox)
    return json_response(sandbox.public(), 202 if sandbox.status is SandboxStatus.CREATING else 201)


def _check_started(sandbox: Sandbox) -> None:
    """Raise the error for a sandbox that never had a machine."""
    if sandbox.end is None or sandbox.started_at is not None:
        return
    if sandbox.end.reason is EndReason.NO_ROOM:
        raise NoRoom(sandbox.end.message, retry_after=5, sandbox_id=sandbox.id)
    if sandbox.end.reason is not EndReason.DELETED:
        raise MachineError(sandbox.end.message, sandbox_id=sandbox.id, reason=sandbox.end.reason.value)


@router.get("", dependencies=[require(Scope.SANDBOXES)])
async def list_sandboxes(
    services: ServicesDep,
    project: ProjectDep,
    status: SandboxStatus | None = None,
    label: Annotated[str | None, Query(max_length=400, description="NAME or NAME=VALUE")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List the project's sandboxes, newest first, also those that have ended, until their retention period ends."""
    sandboxes, next_cursor = await services.sandboxes.list(
        project, status=status, label=label, limit=limit, cursor=cursor
    )
    return json_response({"sandboxes": [each.public() for each in sandboxes], "next_cursor": next_cursor})


@router.get("/{sandbox_id}", dependencies=[require(Scope.SANDBOXES)])
async def get_sandbox(sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Return the sandbox. `end` says why it ended."""
    return json_response((await services.sandboxes.get(project, sandbox_id)).public())


@router.patch("/{sandbox_id}", openapi_extra=body_of(SandboxChange), dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.change")
async def change_sandbox(request: Request, sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Change which ports of the sandbox anyone may reach by their host names, and return the sandbox."""
    change = await read_small(request, SandboxChange)
    return json_response((await services.sandboxes.set_public_ports(project, sandbox_id, change.public_ports)).public())


@router.delete("/{sandbox_id}", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.delete")
async def delete_sandbox(sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """End the sandbox with everything in it, and return it. One that has ended is returned unchanged."""
    sandbox = await services.sandboxes.delete(project, sandbox_id)
    if not sandbox.status.terminal:
        sandbox = await services.sandboxes.wait(project, sandbox_id, _END_SECONDS, lambda it: it.status.terminal)
    return json_response(sandbox.public())


@router.post("/{sandbox_id}/extend", openapi_extra=body_of(Extension), dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.extend")
async def extend_sandbox(request: Request, sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Let the sandbox end `lifetime_seconds` from now, which may also be earlier than before."""
    extension = await read_small(request, Extension)
    return json_response((await services.sandboxes.extend(project, sandbox_id, extension.lifetime_seconds)).public())


@router.get("/{sandbox_id}/metrics", dependencies=[require(Scope.SANDBOXES)])
async def get_metrics(
    sandbox_id: str,
    services: ServicesDep,
    project: ProjectDep,
    series: Annotated[bool, Query(description="Return arrays over its life instead, as for a job.")] = False,
) -> Response:
    """Return what the sandbox's machine uses now, as its guest counts it. `series` works for ended sandboxes, too."""
    if series:
        found = await services.sandboxes.usage_series(project, sandbox_id)
        return json_response({"sandbox_id": sandbox_id, **found.model_dump(mode="json")})
    _, machine = await services.sandboxes.machine(project, sandbox_id)
    return json_response((await machine.usage()).model_dump(mode="json"))


@router.get("/{sandbox_id}/ports", dependencies=[require(Scope.SANDBOXES)])
async def list_ports(request: Request, sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """List the TCP ports that programs in the sandbox listen on, with their paths and the URLs of their host names."""
    sandbox, machine = await services.sandboxes.machine(project, sandbox_id)
    domain = services.sandbox_domain
    ports = [
        {
            **each.model_dump(mode="json"),
            "path": f"/v1/sandboxes/{sandbox.id}/ports/{each.port}/",
            "url": None if domain is None else domain.url(sandbox.id, each.port, str(request.url)),
            "public": each.port in sandbox.spec.public_ports,
        }
        for each in await machine.ports()
    ]
    return json_response({"ports": ports})
