"""Runs a script in its machine under the job's limits: the time limit, cancelling, and the deadline for its start."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from belljar.model.errors import BelljarError, MachineDied, MachineError, MachineTimeout, host_error
from belljar.node.guest import wire
from belljar.node.guest.channel_messages import Usage
from belljar.node.guest.command import Command, CommandFailed
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.sinks import OutputSink
from belljar.node.guest.usage import clamp_usage
from belljar.node.guest.usage_sampler import MachineLimits, UsageSampler
from belljar.node.machines.deadline_uses import noted
from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.timings import StepTimings
from belljar.node.worker.alarm import Alarm
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.cancellation import unless_cancelled
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.plan import AttemptPlan
from belljar.system.background import report_failure

#: After SIGKILL the guest's kernel ends the job's processes; a machine that reports no end by then is killed itself.
KILL_PATIENCE_SECONDS = 5.0
COLLECT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class CompilerOutput:
    """Passes both streams of a compiler on as the job's stderr: its stdout belongs to the script."""

    output: OutputSink

    async def write(self, stream: wire.Stream, data: bytes) -> None:
        await self.output.write(wire.Stream.STDERR, data)

    def full(self, stream: wire.Stream) -> bool:
        return self.output.full(wire.Stream.STDERR)


class ScriptRun:
    """One script in one machine: compiled, run, stopped at its limits, its artifacts fetched. Fills in an `end`."""

    def __init__(
        self,
        plan: AttemptPlan,
        connection: AgentConnection,
        observer: AttemptObserver,
        cancel: asyncio.Event,
        end: AttemptEnd,
        alarm: Alarm,
    ) -> None:
        self._plan = plan
        self._connection = connection
        self._observer = observer
        self._cancel = cancel
        self._alarm = alarm
        self._end = end
        self._timings = StepTimings(end.phases)

    async def run(self) -> None:
        """Run the script to its end, and fetch its artifacts. Raises MachineError, HostError."""
        plan, end = self._plan, self._end
        if (layout := plan.layer) is not None:
            await self._connection.set_layer(layout.script_bytes, layout.layer_bytes, layout.path)
        async with self._sampled():
            if plan.compile is None or await self._compile(plan.compile):
                await self._run()
        end.is_over = True
        self._observer.on_script_ended(end)
        has_ended = end.exited is not None and end.stop is not Stop.CANCELLED
        if plan.artifacts and has_ended and end.not_started is None and not end.in_compile:
            await self._collect()
            self._timings.record("collect")

    @contextlib.asynccontextmanager
    async def _sampled(self) -> AsyncIterator[None]:
        """Sample the machine's usage while the block runs; nothing is sent in the first second."""
        shape = self._plan.machine.shape
        limits = MachineLimits(
            vcpus=shape.vcpus, memory_mb=shape.memory_mb, disk_mb=shape.disk_mb, network=shape.network
        )
        sampling = asyncio.create_task(self._sample(UsageSampler(limits)))
        try:
            yield
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})
            error = None if sampling.cancelled() else sampling.exception()
            if isinstance(error, Exception):
                report_failure("sample_usage", error)

    async def _sample(self, sampler: UsageSampler) -> None:
        interval_changed = asyncio.Event()

        def on_usage(usage: Usage) -> None:
            if sampler.add(usage):
                interval_changed.set()
            if len(sampler):
                self._observer.on_usage(sampler)

        await asyncio.sleep(sampler.interval_seconds)
        with contextlib.suppress(MachineDied):  # the command's end reports it
            while True:
                await self._connection.meter(sampler.interval_seconds, on_usage)
                await interval_changed.wait()
                interval_changed.clear()

    async def _compile(self, command: Command) -> bool:
        """Return whether the script was compiled and can be run."""
        end = self._end
        end.in_compile = True
        output = CompilerOutput(self._observer.output)
        await self._execute(command, b"", output, lambda: self._timings.record("start_compile"))
        self._timings.record("compile")
        if end.stop is not None or end.exited is None or end.exited.exit_code != 0:
            return False
        end.in_compile, end.exited = False, None
        return True

    async def _run(self) -> None:
        def on_started() -> None:
            self._timings.record("start")
            self._observer.on_started()

        await self._execute(self._plan.command, self._plan.stdin, self._observer.output, on_started)
        self._timings.record("run")

    async def _execute(
        self, command: Command, stdin: bytes, output: OutputSink, on_started: Callable[[], None]
    ) -> None:
        """Run one command until it ends or is stopped; note its end."""
        has_started, shape = asyncio.Event(), self._plan.machine.shape

        def started(message: wire.Started) -> None:
            on_started()
            has_started.set()

        started_at = time.monotonic()
        run = asyncio.create_task(self._connection.run(command, stdin, output, started))
        try:
            await self._supervise(run, has_started)
            if run.done():
                elapsed_seconds = time.monotonic() - started_at
                self._end.exited = clamp_usage(
                    await run, elapsed_seconds=elapsed_seconds, vcpus=shape.vcpus, memory_mb=shape.memory_mb
                )
        except CommandFailed as failed:
            if failed.stage is not wire.Stage.EXEC:
                raise MachineError(f"the machine could not prepare the job: {failed}") from None
            self._end.not_started = failed
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        await self._observer.on_output_ended()

    async def _supervise(self, run: asyncio.Task[wire.Exited], has_started: asyncio.Event) -> None:
        """Wait for the command to end; stop it at its time limit, when cancelled or at an alarm, and note which."""
        time_limit = asyncio.create_task(self._wait_time_limit(has_started))
        cancelled = asyncio.create_task(self._cancel.wait())
        alarmed = asyncio.create_task(self._alarm.wait())
        try:
            await asyncio.wait({run, time_limit, cancelled, alarmed}, return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                return
            if time_limit.done():
                time_limit.result()
            self._end.stop = Stop.CANCELLED if cancelled.done() else Stop.TIMED_OUT
            if alarmed.done():
                self._end.stop, self._end.alert = Stop.ALERT, alarmed.result()
        finally:
            for task in (time_limit, cancelled, alarmed):
                task.cancel()
            await asyncio.gather(time_limit, cancelled, alarmed, return_exceptions=True)
        await self._stop(run)

    async def _stop(self, run: asyncio.Task[wire.Exited]) -> None:
        """Send SIGTERM, and SIGKILL after the grace period."""
        for number, patience_seconds in (
            (signals.SIGTERM, self._plan.grace_seconds),
            (signals.SIGKILL, KILL_PATIENCE_SECONDS * deadline_factor(self._plan.boot_timeout_seconds)),
        ):
            await self._connection.signal(number)
            await asyncio.wait({run}, timeout=patience_seconds)
            if run.done():
                return

    async def _wait_time_limit(self, has_started: asyncio.Event) -> None:
        """Return when the command's time is up, counted from its start. Raises MachineTimeout without a start."""
        seconds = self._plan.boot_timeout_seconds
        try:
            with noted("start", seconds):
                async with asyncio.timeout(seconds):
                    await has_started.wait()
        except TimeoutError:
            raise MachineTimeout(f"the machine did not start the job within {seconds:g} s") from None
        await asyncio.sleep(self._plan.timeout_seconds)

    async def _collect(self) -> None:
        """Fetch the artifacts. The script has run: an error here is noted, and does not undo its result."""
        plan, end = self._plan, self._end
        collecting = self._connection.collect(
            plan.artifacts,
            self._observer.artifacts,
            max_bytes=plan.max_artifact_bytes,
            max_count=plan.max_artifact_count,
        )
        seconds = COLLECT_SECONDS * deadline_factor(plan.boot_timeout_seconds)
        try:
            with noted("collect", seconds, by_guest=True):
                async with asyncio.timeout(seconds):
                    end.collected = await unless_cancelled(self._cancel, collecting)
            if end.collected is None:
                end.collect_error = MachineError("the job was cancelled while its artifacts were fetched")
        except BelljarError as error:
            end.collect_error = error
        except TimeoutError:
            end.collect_error = MachineTimeout(f"the artifacts did not arrive within {seconds:g} s")
        except OSError as error:
            end.collect_error = host_error(error, "keep the artifacts")
