"""/v1/sandboxes/{id}/contexts and …/run: code whose variables live from one call to the next."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_medium
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.json_response import json_response
from belljar.control.api.live import while_connected
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.api.run_events import run_stream
from belljar.control.api.sandbox_calls import Call, CallDep, guest_path
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.code_request import ContextRequest, DefaultRunRequest, RunRequest
from belljar.control.sandboxes.code_result import collect_run
from belljar.control.sandboxes.code_run import CodeRun
from belljar.control.sandboxes.contexts import Context

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])

Follow = Annotated[bool, Query(alias="stream", description="Follow the run as server-sent events.")]
_CREATED: dict[int | str, dict[str, Any]] = {201: {"description": "It is ready for code."}}


@router.post(
    "/contexts",
    response_model=None,
    status_code=201,
    responses=_CREATED,
    openapi_extra=body_of(ContextRequest),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("context.create")
async def create_context(request: Request, call: CallDep, identity: IdentityDep) -> Response:
    """Start a context: a process in which code runs and its variables stay. Returns it when it is ready."""
    wanted = await read_medium(request, ContextRequest)
    request.state.body_lease.release()
    cwd = None if wanted.cwd is None else guest_path(wanted.cwd, "cwd")
    contexts = call.services.contexts
    creating = contexts.create(call.sandbox.id, call.machine, wanted.language, cwd=cwd, env=wanted.env)
    created = await while_connected(request, identity, call.services.changes, call.sandbox.id, creating)
    return json_response(created.public(), 201)


@router.get("/contexts", dependencies=[require(Scope.SANDBOXES)])
async def list_contexts(call: CallDep) -> Response:
    """List the contexts, oldest first."""
    found = await call.services.contexts.list(call.sandbox.id, call.machine)
    return json_response({"contexts": [each.public() for each in found]})


@router.get("/contexts/{context_id}", dependencies=[require(Scope.SANDBOXES)])
async def get_context(context_id: str, call: CallDep) -> Response:
    """Return a context: `idle`, `running`, or `died`."""
    return json_response((await call.services.contexts.get(call.sandbox.id, call.machine, context_id)).public())


@router.delete("/contexts/{context_id}", dependencies=[require(Scope.SANDBOXES)])
@audited("context.delete")
async def delete_context(context_id: str, call: CallDep) -> Response:
    """End the context, whatever runs in it, with its variables and the processes that it started."""
    return json_response((await call.services.contexts.delete(call.sandbox.id, call.machine, context_id)).public())


@router.post("/contexts/{context_id}/interrupt", dependencies=[require(Scope.SANDBOXES)])
@audited("context.interrupt")
async def interrupt_context(context_id: str, call: CallDep) -> Response:
    """Interrupt what runs in the context, as Ctrl-C does; its variables stay. Nothing happens to an idle one."""
    return json_response((await call.services.contexts.interrupt(call.sandbox.id, call.machine, context_id)).public())


@router.post("/contexts/{context_id}/restart", dependencies=[require(Scope.SANDBOXES)])
@audited("context.restart")
async def restart_context(request: Request, context_id: str, call: CallDep, identity: IdentityDep) -> Response:
    """Start the context anew, without its variables, also one that died. A run that goes on ends as `context_died`."""
    restarting = call.services.contexts.restart(call.sandbox.id, call.machine, context_id)
    context = await while_connected(request, identity, call.services.changes, call.sandbox.id, restarting)
    return json_response(context.public())


@router.post(
    "/contexts/{context_id}/run",
    response_model=None,
    openapi_extra=body_of(RunRequest),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("context.run")
async def run_in_context(
    request: Request, context_id: str, call: CallDep, identity: IdentityDep, stream: Follow = False
) -> Response:
    """Run code in the context, one piece at a time. Returns its output, its results, and what it raised.

    With `stream=true` they follow as server-sent events: `stdout`, `stderr`, `result`, `error`, then `done`. A stream
    that ends without `done` broke off. When the client disconnects, the code is interrupted.
    """
    wanted = await read_medium(request, RunRequest)
    request.state.body_lease.release()
    context = await call.services.contexts.get(call.sandbox.id, call.machine, context_id)
    return await _run(request, call, identity, context, wanted, stream=stream)


@router.post(
    "/run",
    response_model=None,
    openapi_extra=body_of(DefaultRunRequest),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("context.run")
async def run_code(request: Request, call: CallDep, identity: IdentityDep, stream: Follow = False) -> Response:
    """Run code in the default context of its language, which is started with the first code.

    The context has the language as its id. Everything else is as for a context that was created.
    """
    wanted = await read_medium(request, DefaultRunRequest)
    request.state.body_lease.release()
    finding = call.services.contexts.default(call.sandbox.id, call.machine, wanted.language)
    context = await while_connected(request, identity, call.services.changes, call.sandbox.id, finding)
    return await _run(request, call, identity, context, wanted, stream=stream)


async def _run(
    request: Request, call: Call, identity: Identity, context: Context, wanted: RunRequest, *, stream: bool
) -> Response:
    run = call.services.contexts.run(call.sandbox.id, call.machine, context, wanted.code, wanted.timeout_seconds)
    if stream:
        return run_stream(call, run)
    collecting = _fields(run, context, wanted.max_output_bytes)
    fields = await while_connected(request, identity, call.services.changes, call.sandbox.id, collecting)
    return await asyncio.to_thread(json_response, fields)


async def _fields(run: CodeRun, context: Context, max_bytes: int) -> dict[str, Any]:
    try:
        result = await collect_run(run.events(), max_bytes)
    finally:
        run.abandon()
    return {"context": context.id, "language": context.language, **result.public()}
