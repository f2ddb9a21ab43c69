"""One attempt at a job: take a machine, let it run the script, watch over it, and say how it ended.

This is where a job's limits meet a machine: the time limit, cancelling, the deadline for coming up, and the difference
between a script that failed (an `AttemptEnd`) and infrastructure that failed under it (a `MachineError`). Nothing here
knows of a database.
"""

from __future__ import annotations

import asyncio
import signal as signals
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import structlog

from belljar.model.errors import BelljarError, MachineDied, MachineError, MachineTimeout, host_error
from belljar.node.guest import wire
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.sinks import ArtifactSink, OutputSink
from belljar.node.guest.usage import clamp_usage
from belljar.node.machines.protocol import Machine, MachineSpec
from belljar.node.machines.provision.network_slot import configure_network
from belljar.node.machines.provision.provisioner import ProvisionedMachine, Source
from belljar.node.machines.steps import Steps
from belljar.node.network.traffic import Traffic

log = structlog.get_logger()

#: After SIGKILL the guest's kernel ends the job's processes; a machine that has not said so by then is ended itself.
KILL_PATIENCE_SECONDS = 5.0
#: What the guest said before its machine died may still be under way.
LAST_WORDS_SECONDS = 1.0
COLLECT_SECONDS = 120.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptDiskLayout:
    """How the script's disk is divided where what was installed for the script lies behind it."""

    script_bytes: int
    layer_bytes: int
    #: The folder of the image that the layer is laid over.
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptPlan:
    """Everything an attempt needs, resolved: no name is looked up any more."""

    machine: MachineSpec
    command: Command
    layer: ScriptDiskLayout | None = None
    #: Runs first, in the same machine and files; the command runs when it ended well.
    compile: Command | None = None
    stdin: bytes
    timeout_seconds: float
    grace_seconds: float
    boot_timeout_seconds: float
    artifacts: tuple[str, ...] = ()
    max_artifact_bytes: int = 0
    max_artifact_count: int = 0


class Stop(StrEnum):
    """Why a job was stopped from outside."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class AttemptEnd:
    """How a script ended: `exited`, or `not_started`, or neither when it was killed together with its machine."""

    stop: Stop | None = None
    exited: wire.Exited | None = None
    not_started: CommandFailed | None = None
    #: Whether it was the compiler that ended so, and the script was never begun.
    in_compile: bool = False
    #: What became of its artifacts; None when none were asked for.
    collected: wire.Collected | None = None
    #: Why the artifacts are not complete.
    collect_error: BelljarError | None = None
    #: What went over its network; None when it had none, or when that could not be read.
    traffic: Traffic | None = None
    #: Milliseconds of each step, in order.
    phases: dict[str, float] = field(default_factory=dict)
    #: Whether the above is how the script ended, for good.
    is_over: bool = False


class AttemptObserver(Protocol):
    """Who is told what happens during an attempt."""

    @property
    def output(self) -> OutputSink: ...

    @property
    def artifacts(self) -> ArtifactSink: ...

    def took(self, source: Source) -> None:
        """There is a machine, and this is where it came from."""
        ...

    def started(self) -> None:
        """The entrypoint runs."""
        ...

    def script_ended(self, end: AttemptEnd) -> None:
        """The script has ended, or its compiler kept it from beginning: nothing that follows changes how."""
        ...

    def console(self, data: bytes, dropped_bytes: int) -> None:
        """The machine's serial console, once, when the machine has ended."""
        ...


@dataclass(frozen=True, slots=True)
class CompilerOutput:
    """Passes both streams of a compiler on as the job's stderr: its stdout is the script's own."""

    output: OutputSink

    async def write(self, stream: wire.Stream, data: bytes) -> None:
        await self.output.write(wire.Stream.STDERR, data)

    def full(self, stream: wire.Stream) -> bool:
        return self.output.full(wire.Stream.STDERR)


async def run_attempt(
    plan: AttemptPlan,
    take: Callable[[MachineSpec], AbstractAsyncContextManager[ProvisionedMachine]],
    observer: AttemptObserver,
    cancel: asyncio.Event,
    ended: Callable[[AttemptEnd], Awaitable[None]],
    traffic: Callable[[], Awaitable[Traffic | None]] | None = None,
) -> None:
    """Run the plan in a fresh machine and destroy it; `ended` is told how it was, while the machine goes down.

    `traffic` reads what went over the machine's network, before that goes. Setting `cancel` stops the job at whatever
    point it is. Raises MachineError or HostError when the machine failed rather than the script; the attempt may then
    be tried again. When it returns or raises, nothing of the machine is left; and that does not wait for `ended`, which
    may be waiting for the disk space that the machine holds.
    """
    end = AttemptEnd()
    recording: asyncio.Task[None] | None = None
    try:
        async with AsyncExitStack() as stack:
            ready = None
            if not cancel.is_set():
                ready = await _unless(cancel, stack.enter_async_context(take(plan.machine)))
            if ready is None:
                end.stop = Stop.CANCELLED
            else:
                observer.took(ready.source)
                end.phases.update(ready.phases)
                await _use(plan, ready, observer, cancel, end)
                # What is slow about the end, reaping and removing, is nobody's wait.
                stack.push_async_callback(_finished, asyncio.create_task(ready.machine.kill()))
            end.traffic = await _read(traffic) if traffic is not None else None
            recording = asyncio.create_task(_call(ended, end))
        await recording
    except asyncio.CancelledError:
        if recording is not None:
            recording.cancel()
        raise
    finally:
        if recording is not None:
            await asyncio.wait({recording})


async def _call(ended: Callable[[AttemptEnd], Awaitable[None]], end: AttemptEnd) -> None:
    await ended(end)


async def _read(traffic: Callable[[], Awaitable[Traffic | None]]) -> Traffic | None:
    try:
        return await traffic()
    except Exception as error:  # noqa: BLE001 (the script has ended; a number about it is no reason to lose that)
        log.warning("traffic_not_read", error=str(error))
        return None


async def _finished(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("machine_not_killed", error=str(error))  # its owner's block ends it


async def _use(
    plan: AttemptPlan, ready: ProvisionedMachine, observer: AttemptObserver, cancel: asyncio.Event, end: AttemptEnd
) -> None:
    machine = ready.machine
    try:
        await _unless_dead(machine, _converse(plan, ready, observer, cancel, end))
    except MachineError as error:
        if end.is_over:
            end.collect_error = end.collect_error or error
        elif end.stop is None:
            raise  # a machine that was being stopped may end as it likes
    except Exception as error:
        if not end.is_over:
            raise
        log.exception("attempt_failed_after_its_end", machine=machine.id)
        end.collect_error = end.collect_error or MachineError(f"what followed the script's end failed: {error}")
    finally:
        observer.console(bytes(machine.console.data), machine.console.dropped_bytes)


async def _unless_dead(machine: Machine, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end; if its machine dies under it, raise MachineDied with the reason of the death."""
    task, death = asyncio.create_task(work), asyncio.create_task(machine.death())
    try:
        await asyncio.wait({task, death}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({task}, timeout=LAST_WORDS_SECONDS)
        if task.done() and not isinstance(task.exception(), MachineDied):
            return task.result()
        await asyncio.wait({death}, timeout=LAST_WORDS_SECONDS)
        if death.done():
            raise MachineDied(death.result().message)
        return task.result()
    finally:
        task.cancel()
        death.cancel()
        await asyncio.gather(task, death, return_exceptions=True)


async def _converse(
    plan: AttemptPlan, ready: ProvisionedMachine, observer: AttemptObserver, cancel: asyncio.Event, end: AttemptEnd
) -> None:
    clock, connection = Steps(end.phases), ready.connection
    await configure_network(
        connection, plan.machine.slot
    )  # of a machine that its planner gave a place to, not the supply
    if (laid := plan.layer) is not None:
        await connection.set_layer(laid.script_bytes, laid.layer_bytes, laid.path)
    if plan.compile is None or await _compile(plan, plan.compile, connection, observer, cancel, end, clock):
        await _run(plan, connection, observer, cancel, end, clock)
    end.is_over = True
    observer.script_ended(end)
    if (
        plan.artifacts
        and end.not_started is None
        and not end.in_compile
        and end.stop is not Stop.CANCELLED
        and end.exited is not None
    ):
        await _collect(plan, connection, observer, cancel, end)
        clock.done("collect")


async def _unless(cancel: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns, or None if `cancel` is set first."""
    task, cancelled = asyncio.create_task(work), asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait({task, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        task.cancel()
        cancelled.cancel()
        await asyncio.gather(task, cancelled, return_exceptions=True)


async def _compile(
    plan: AttemptPlan,
    command: Command,
    connection: AgentConnection,
    observer: AttemptObserver,
    cancel: asyncio.Event,
    end: AttemptEnd,
    clock: Steps,
) -> bool:
    """Whether the script was compiled and can be run; all that the compiler says is the job's stderr."""

    def started(message: wire.Started) -> None:
        clock.done("start_compile")

    end.in_compile = True
    await _execute(command, b"", CompilerOutput(observer.output), started, plan, connection, cancel, end)
    clock.done("compile")
    if end.stop is not None or end.exited is None or end.exited.exit_code != 0:
        return False
    end.in_compile, end.exited = False, None
    return True


async def _run(
    plan: AttemptPlan,
    connection: AgentConnection,
    observer: AttemptObserver,
    cancel: asyncio.Event,
    end: AttemptEnd,
    clock: Steps,
) -> None:
    def started(message: wire.Started) -> None:
        clock.done("start")
        observer.started()

    await _execute(plan.command, plan.stdin, observer.output, started, plan, connection, cancel, end)
    clock.done("run")


async def _execute(
    command: Command,
    stdin: bytes,
    output: OutputSink,
    started: Callable[[wire.Started], None],
    plan: AttemptPlan,
    connection: AgentConnection,
    cancel: asyncio.Event,
    end: AttemptEnd,
) -> None:
    """One command, from its start to its end or until it is stopped; what became of it is noted in `end`."""
    has_started = asyncio.Event()

    def note(message: wire.Started) -> None:
        started(message)
        has_started.set()

    begun, shape = time.monotonic(), plan.machine.shape
    run = asyncio.create_task(connection.run(command, stdin, output, note))
    try:
        await _supervise(run, connection, has_started, cancel, plan, end)
        if run.done():
            elapsed = time.monotonic() - begun
            end.exited = clamp_usage(await run, elapsed_seconds=elapsed, vcpus=shape.vcpus, memory_mb=shape.memory_mb)
    except CommandFailed as failed:
        if failed.stage is not wire.Stage.EXEC:
            raise MachineError(f"the machine could not prepare the job: {failed}") from None
        end.not_started = failed
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


async def _supervise(
    run: asyncio.Task[wire.Exited],
    connection: AgentConnection,
    has_started: asyncio.Event,
    cancel: asyncio.Event,
    plan: AttemptPlan,
    end: AttemptEnd,
) -> None:
    """Wait for the job to end; stop it when its time is up or it is cancelled, and note which in `end`."""
    limit = asyncio.create_task(_time_limit(has_started, plan))
    cancelled = asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait({run, limit, cancelled}, return_when=asyncio.FIRST_COMPLETED)
        if run.done():
            return
        if limit.done():
            limit.result()
        end.stop = Stop.CANCELLED if cancelled.done() else Stop.TIMED_OUT
    finally:
        limit.cancel()
        cancelled.cancel()
        await asyncio.gather(limit, cancelled, return_exceptions=True)
    for number, patience_seconds in (
        (signals.SIGTERM, plan.grace_seconds),
        (signals.SIGKILL, KILL_PATIENCE_SECONDS),
    ):
        await connection.signal(number)
        await asyncio.wait({run}, timeout=patience_seconds)
        if run.done():
            break


async def _time_limit(has_started: asyncio.Event, plan: AttemptPlan) -> None:
    """Return when the job's time is up, which begins when its entrypoint does."""
    try:
        async with asyncio.timeout(plan.boot_timeout_seconds):
            await has_started.wait()
    except TimeoutError:
        raise MachineTimeout(f"the machine did not start the job within {plan.boot_timeout_seconds:g} s") from None
    await asyncio.sleep(plan.timeout_seconds)


async def _collect(
    plan: AttemptPlan, connection: AgentConnection, observer: AttemptObserver, cancel: asyncio.Event, end: AttemptEnd
) -> None:
    """Fetch the artifacts. The script has run: what goes wrong here is told, and does not undo its result."""
    collecting = connection.collect(
        plan.artifacts,
        observer.artifacts,
        max_bytes=plan.max_artifact_bytes,
        max_count=plan.max_artifact_count,
    )
    try:
        async with asyncio.timeout(COLLECT_SECONDS):
            end.collected = await _unless(cancel, collecting)
        if end.collected is None:
            end.collect_error = MachineError("the job was cancelled while its artifacts were fetched")
    except BelljarError as error:
        end.collect_error = error
    except TimeoutError:
        end.collect_error = MachineTimeout(f"the artifacts did not come within {COLLECT_SECONDS:g} s")
    except OSError as error:
        end.collect_error = host_error(error, "keep the artifacts")
