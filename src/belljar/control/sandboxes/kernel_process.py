"""The process of a kernel: start it, ask it, and say how it died."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator

from belljar.control.sandboxes.kernel_messages import KernelViolation, MessageReader
from belljar.control.sandboxes.kernels.programs import Kernel
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import CannotStart, ContextDied, StreamBroken
from belljar.model.sandbox_values import CodeContext, ProcessExit, ProcessInfo, ProcessOutput, ProcessRequest

#: An interpreter that starts in an emulated machine whose processors others use.
START_SECONDS = 60.0
_MAX_TAIL = 4096
#: A line of a kernel that becomes ready.
_MAX_READY_BYTES = 64 * 1024
#: The exit code of a shell that does not find a program.
_NOT_FOUND = 127


@contextlib.asynccontextmanager
async def conversation(
    machine: SandboxMachine, process_id: int, data: bytes, *, stdout_from: int = 0, stderr_from: int = 0
) -> AsyncIterator[AsyncIterator[ProcessOutput | ProcessExit]]:
    """Send input to a process while the block runs, and yield its output from these offsets on."""
    sending = asyncio.create_task(_send(machine, process_id, data))
    output = machine.output(process_id, stdout_from=stdout_from, stderr_from=stderr_from)
    try:
        yield output
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        if isinstance(output, AsyncGenerator):
            await output.aclose()


async def _send(machine: SandboxMachine, process_id: int, data: bytes) -> None:
    with contextlib.suppress(BelljarError):  # the output says what became of the process
        await machine.write_input(process_id, data)


def request_line(run_id: str, code: str) -> bytes:
    """Return the request to run code."""
    return json.dumps({"run": run_id, "code": code}).encode() + b"\n"


async def start_kernel(
    machine: SandboxMachine, kernel: Kernel, context_id: str, *, cwd: str | None, env: dict[str, str]
) -> ProcessInfo:
    """Start the kernel of a context and wait until it is ready.

    Raises CannotStart, ContextDied, and what `SandboxMachine.start` raises.
    """
    request = ProcessRequest(
        args=kernel.args,
        env=env,
        cwd=cwd,
        background=True,
        context=CodeContext(id=context_id, language=kernel.language),
    )
    try:
        process = await machine.start(request)
    except CannotStart as error:
        needs = f"a context of {kernel.language} needs {kernel.executable}"
        raise CannotStart(f"{needs}, cwd and env as for commands: {error.message}", **error.details) from None
    return await make_ready(machine, kernel, process)


async def make_ready(machine: SandboxMachine, kernel: Kernel, process: ProcessInfo) -> ProcessInfo:
    """Give a process that was just started its program, and wait until it is ready; otherwise forget it.

    Raises CannotStart, ContextDied.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            await _wait_ready(machine, kernel, process)
    except BaseException as error:
        forgetting = asyncio.create_task(_forget(machine, process))
        await asyncio.shield(forgetting)
        if isinstance(error, TimeoutError):
            raise ContextDied(
                f"{kernel.executable} was not ready for code within {START_SECONDS:g} s; try again, or give the "
                "sandbox more vcpus"
            ) from None
        raise
    return process


async def _forget(machine: SandboxMachine, process: ProcessInfo) -> None:
    with contextlib.suppress(BelljarError):  # the machine is gone, or the process is
        await machine.forget(process.id)


async def _wait_ready(machine: SandboxMachine, kernel: Kernel, process: ProcessInfo) -> None:
    messages, tail = MessageReader(_MAX_READY_BYTES), bytearray()
    async with conversation(machine, process.id, kernel.program) as output:
        async for piece in output:
            if isinstance(piece, ProcessExit):
                raise _not_ready(kernel, piece, tail.decode(errors="replace"))
            if piece.stream is LogStream.STDERR:
                tail = (tail + piece.data)[-_MAX_TAIL:]
            elif await _is_ready(messages, piece.data):
                return
    raise StreamBroken("the output of the context broke off before it was ready")


async def _is_ready(messages: MessageReader, data: bytes) -> bool:
    try:
        return any([message.kind == "ready" async for message, _ in messages.feed(data)])
    except KernelViolation as error:
        raise died(None, str(error)) from None


def _not_ready(kernel: Kernel, exit_: ProcessExit, tail: str) -> BelljarError:
    if exit_.exit_code != _NOT_FOUND:
        return died(exit_, tail)
    needs = f"a context of {kernel.language} needs {kernel.executable}"
    return CannotStart(f"{needs}, which this image lacks; create the sandbox from another one", stage="exec")


def died(exit_: ProcessExit | None, tail: str) -> ContextDied:
    """Return the error for a kernel that has ended so. `tail` is the end of its own stderr, or a reason."""
    if exit_ is None:
        how, details = "it sent what is no message", {}
    else:
        details = exit_.model_dump(mode="json", include={"exit_code", "signal", "out_of_memory"})
        how = f"exit code {exit_.exit_code}" if exit_.signal is None else f"signal {exit_.signal}"
        if exit_.out_of_memory:
            how += ", for want of memory: give the sandbox more memory_mb, or hold less data at a time"
    last = tail.strip()
    message = (
        f"the process of the context has ended ({how}) and its variables are lost; restart the context or delete it"
    )
    return ContextDied(message, **details, **({"stderr": last[-_MAX_TAIL:]} if last else {}))
