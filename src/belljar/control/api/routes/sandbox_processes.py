"""/v1/sandboxes/{id}/exec and …/processes: run commands in a sandbox, follow, signal and forget them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_command, read_small
from belljar.control.api.command_events import event_stream
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.json_response import json_response
from belljar.control.api.live import while_connected
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import Call, CallDep, guest_path
from belljar.control.api.streams import Stream
from belljar.control.audit.operation import record_nothing
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.output import Collected, collect, public_exit, public_process
from belljar.control.sandboxes.request import ExecRequest, SignalRequest
from belljar.model.sandbox_errors import StreamBroken
from belljar.model.sandbox_values import ProcessInfo, ProcessRequest, TerminalSize

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}", tags=["sandboxes"])

Pid = Annotated[int, Path(ge=1, le=2**31 - 1, description="The command's process number in the sandbox.")]
Follow = Annotated[bool, Query(alias="stream", description="Follow the output as server-sent events.")]
Encoding = Annotated[Literal["text", "base64"], Query(description="How output is written.")]
Offset = Annotated[int | None, Query(ge=0, le=2**62, description="Begin at this byte; default: the oldest kept.")]
_BACKGROUND: dict[int | str, dict[str, Any]] = {201: {"description": "It runs in the background."}}
#: Larger results are serialized outside of the event loop.
_THREAD_BYTES = 256 * 1024
#: How long a command may leave its input unread. While it does, the client's end is not noticed.
_INPUT_SECONDS = 60.0


@router.post(
    "/exec",
    response_model=None,
    responses=_BACKGROUND,
    openapi_extra=body_of(ExecRequest),
    dependencies=[require(Scope.SANDBOXES)],
)
@audited("sandbox.exec")
async def execute(request: Request, call: CallDep, identity: IdentityDep, stream: Follow = False) -> Response:
    """Run a command. Returns its result when it has ended; with `background` the process, as soon as it runs.

    With `stream=true` the output follows as server-sent events: `started`, `stdout` and `stderr`, then `exit`. A stream
    that ends without `exit` broke off. A foreground command is killed 10 s after its client disconnected, unless
    somebody follows it again by then.
    """
    command, long_stdin = await read_command(request, ExecRequest)
    wanted = _request_of(command, long_stdin)
    request.state.body_lease.release()
    started = await call.machine.start(wanted)
    if stream:
        return event_stream(call, started, command.encoding)
    if command.background:
        return json_response(public_process(started), 201)
    result = await while_connected(
        request, identity, call.services.changes, call.sandbox.id, _result(call, started, command.max_output_bytes)
    )
    fields = {
        "pid": started.pid,
        "id": started.id,
        **public_exit(result.exit),
    }
    if sum(map(len, result.data.values())) <= _THREAD_BYTES:
        return json_response(fields | result.public(command.encoding))
    return await asyncio.to_thread(lambda: json_response(fields | result.public(command.encoding)))


def _request_of(command: ExecRequest, long_stdin: bytes | None) -> ProcessRequest:
    stdin: bytes | None = long_stdin if long_stdin is not None else command.stdin_bytes()
    has_more = command.keep_stdin_open or command.terminal is not None
    return ProcessRequest(
        args=command.argv,
        env=command.env,
        cwd=None if command.cwd is None else guest_path(command.cwd, "cwd"),
        user=command.guest_user,
        terminal=command.terminal,
        stdin=None if has_more and not stdin else stdin,
        background=command.background,
        timeout_seconds=command.timeout_seconds,
    )


async def _result(call: Call, process: ProcessInfo, max_bytes: int) -> Collected:
    async with call.services.commands.reading(call.sandbox.id, call.machine, process) as reader:
        collected = await collect(call.machine.output(process.id), max_bytes)
        reader.has_ended = True
        return collected


async def _end(call: Call, process: ProcessInfo, seconds: float) -> ProcessInfo:
    async with call.services.commands.reading(call.sandbox.id, call.machine, process) as reader:
        process = await call.machine.wait(process.id, seconds)
        reader.has_ended = process.exit is not None
        return process


@router.get("/processes", dependencies=[require(Scope.SANDBOXES)])
async def list_processes(call: CallDep) -> Response:
    """List the commands that run, and the newest of those that have ended, oldest first."""
    found = sorted(await call.machine.processes(), key=lambda each: (each.started_at, each.id))
    return json_response({"processes": [public_process(each) for each in found]})


@router.get("/processes/{pid}", dependencies=[require(Scope.SANDBOXES)])
async def get_process(
    request: Request,
    pid: Pid,
    call: CallDep,
    identity: IdentityDep,
    wait: Annotated[float, Query(ge=0, le=3600, description="Wait up to this many seconds for its end.")] = 0,
) -> Response:
    """Return the command; with `wait`, as soon as it has ended. Its exit is kept for late readers."""
    process = await call.process(pid)
    if wait and process.exit is None:
        waiting = _end(call, process, wait)
        process = await while_connected(request, identity, call.services.changes, call.sandbox.id, waiting)
    return json_response(public_process(process))


@router.get("/processes/{pid}/output", response_class=Stream, dependencies=[require(Scope.SANDBOXES)])
async def follow_process(
    pid: Pid, call: CallDep, encoding: Encoding = "text", stdout_from: Offset = None, stderr_from: Offset = None
) -> Stream:
    """Follow the command's output as server-sent events, from what is kept of it to its exit."""
    process = await call.process(pid)
    return event_stream(call, process, encoding, stdout_from=stdout_from, stderr_from=stderr_from)


@router.post("/processes/{pid}/signal", openapi_extra=body_of(SignalRequest), dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.signal")
async def signal_process(request: Request, pid: Pid, call: CallDep) -> Response:
    """Send a signal to the command's process group, or kill it with every process that it started."""
    process = await call.process(pid)
    wanted = await read_small(request, SignalRequest, required=False)
    if wanted.descendants:
        await call.machine.kill(process.id)
    else:
        await call.machine.signal(process.id, wanted.name)
    return json_response(public_process(await call.machine.process(process.id)))


@router.post("/processes/{pid}/stdin", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.write_stdin")
async def write_stdin(
    request: Request,
    pid: Pid,
    call: CallDep,
    end: Annotated[bool, Query(description="End the input behind the body.")] = False,
) -> Response:
    """Send the body to the command's standard input, which `keep_stdin_open` or `pty` left open."""
    record_nothing("sandbox.write_stdin")
    process = await call.process(pid)
    async for data in request.stream():
        if not data:
            continue
        try:
            async with asyncio.timeout(_INPUT_SECONDS):
                await call.machine.write_input(process.id, data)
        except TimeoutError:
            raise StreamBroken(f"the command read nothing of its input for {_INPUT_SECONDS:g} s") from None
    if end:
        await call.machine.end_input(process.id)
    return json_response(public_process(process))


@router.post("/processes/{pid}/resize", openapi_extra=body_of(TerminalSize), dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.resize")
async def resize_terminal(request: Request, pid: Pid, call: CallDep) -> Response:
    """Set the size of the command's terminal."""
    record_nothing("sandbox.resize")
    process = await call.process(pid)
    size = await read_small(request, TerminalSize)
    await call.machine.resize(process.id, size)
    return json_response(public_process(process))


@router.delete("/processes/{pid}", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.forget")
async def forget_process(pid: Pid, call: CallDep) -> Response:
    """Kill the command if it runs, and forget its output and its exit."""
    process = await call.process(pid)
    await call.machine.forget(process.id)
    return json_response(public_process(process))
