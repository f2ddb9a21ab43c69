"""Holds one sandbox: starts its machine, opens the session, watches over both, ends them, and reports the end.

Nothing that fails here ends the worker, or any other sandbox. A sandbox whose lease is lost is ended without a report.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.sandboxes import SandboxLink, SandboxStart
from belljar.model.errors import BelljarError, HostError, MachineError, host_error
from belljar.model.job import MachineInfo, Timings
from belljar.model.sandbox import EndReason, FrozenState, ResumeProblem, SandboxEnd, SandboxStatus
from belljar.model.sandbox_errors import SandboxEnded, SandboxPaused, SnapshotUnusable
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.session import Session
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import Machine
from belljar.node.sandboxes.freezes import Freeze
from belljar.node.sandboxes.freezing import Freezer
from belljar.node.sandboxes.held import HeldSandbox, end_of
from belljar.node.sandboxes.machine import HeldMachine
from belljar.node.sandboxes.machine_start import MachineStarter, StartedMachine
from belljar.node.sandboxes.running import RunningSandbox
from belljar.node.sandboxes.usage import sampled
from belljar.node.worker.flow_reports import FlowReports
from belljar.node.worker.job_network import network_use
from belljar.node.worker.retry import RetryTimes, retry_until_written
from belljar.system.background import report_failure

log = structlog.get_logger()
#: The reason of a machine's death may become known a moment after its session broke.
_DEATH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _NotResumed:
    """A paused sandbox could not be resumed; it stays paused."""

    problem: ResumeProblem


class SandboxHolder:
    """Holds the sandboxes of one worker."""

    def __init__(self, link: SandboxLink, starter: MachineStarter, freezer: Freezer, retry_times: RetryTimes) -> None:
        self._link = link
        self._starter = starter
        self._freezer = freezer
        self._retry_times = retry_times

    async def hold(self, held: HeldSandbox) -> None:
        """Hold a sandbox to its end, or until it is paused, and report that.

        Never raises, except when the worker is stopped.
        """
        try:
            end = await self._live(held)
            if end is not None:
                await self._report(held, end)
        except asyncio.CancelledError:
            if not held.is_paused:
                await self._within_stop(self._report(held, _stopped(held)))
            raise
        except Exception as error:  # noqa: BLE001 (its lease runs out, and the control plane ends it)
            report_failure("hold_sandbox", error, **held.ids)

    async def _live(self, held: HeldSandbox) -> SandboxEnd | _NotResumed | None:
        """Start its machine and keep it until the sandbox is to end. None when it is paused, or the lease was lost."""
        try:
            async with held.lease:
                return await self._start_and_watch(held)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 (each is told apart here)
            if held.lease.lost is not None or isinstance(error, LeaseLost):
                log.warning("sandbox_given_up", **held.ids, reason=held.lease.lost or str(error))
                return None
            return held.end or _failed_start(held, error)

    async def _start_and_watch(self, held: HeldSandbox) -> SandboxEnd | None:
        async with AsyncExitStack() as stack:
            running = await held.unless_ending(self._start(held, stack))
            if running is None:
                return await held.wait_ending()
            try:
                async with sampled(self._link, held, running.machine):
                    end = await self._watch(held, running)
                if end is not None:
                    held.finish(end)
            finally:
                await uninterrupted(running.machine.close(_closed(held)))
            await _kill(running.started.provisioned.machine)
            if end is None:
                return None
            network = running.started.network
            traffic, flows = await asyncio.gather(network.traffic(), network.finish_flows())
            await running.flow_reports.finish(flows)
            return end.model_copy(update={"network": network_use(traffic, flows)})

    async def _start(self, held: HeldSandbox, stack: AsyncExitStack) -> RunningSandbox:
        began = time.monotonic()
        started = await self._starter.start(held, stack)
        sessions = await stack.enter_async_context(AsyncExitStack())
        session = await sessions.enter_async_context(_opening(started))
        phases = dict(started.provisioned.phases)
        phases["session"] = round((time.monotonic() - began) * 1000 - sum(phases.values()), 3)
        machine = HeldMachine(session, started.defaults, started.size, started.saved)
        report = SandboxStart(
            started_at=datetime.now(UTC),
            machine=MachineInfo(
                source=started.provisioned.source,
                hypervisor=started.hypervisor.name,
                accelerator=started.hypervisor.accelerator,
            ),
            timings=Timings(machine_ms=round((time.monotonic() - began) * 1000, 3), phases=phases),
        )
        await retry_until_written(
            lambda: self._link.sandbox_running(held.key, report, machine),
            "sandbox_running",
            self._retry_times,
            **held.ids,
        )
        log.info("sandbox_started", **held.ids, source=started.provisioned.source, ms=report.timings.machine_ms)
        held.has_run = True
        flow_reports = FlowReports(lambda flows: self._link.report_sandbox_flows(held.key, flows), held.ids)
        stack.callback(flow_reports.close)
        started.network.observe(held.ids, flow_reports.offer)
        return RunningSandbox(
            started=started,
            session=session,
            machine=machine,
            report=report,
            flow_reports=flow_reports,
            sessions=sessions,
        )

    async def _watch(self, held: HeldSandbox, running: RunningSandbox) -> SandboxEnd | None:
        """Wait until the sandbox is to end, and carry out what it is asked for meanwhile; None when it is paused."""
        while True:
            event = await self._next_event(held, running)
            if isinstance(event, SandboxEnd):
                return event
            outcome = await held.unless_ending(self._freezer.carry_out(held, running, event))
            if isinstance(outcome, FrozenState):
                return None
            end = outcome or held.end  # without either it goes on
            if end is not None:
                return end

    async def _next_event(self, held: HeldSandbox, running: RunningSandbox) -> SandboxEnd | Freeze:
        """Wait until it is to be frozen or to end: asked, at its deadline, idle for too long, or its machine died."""
        machine, idle_seconds = running.started.provisioned.machine, held.sandbox.spec.idle_seconds
        ending = asyncio.create_task(held.wait_ending())
        death = asyncio.create_task(machine.death())
        closed = asyncio.create_task(running.session.wait_closed())
        freeze = asyncio.create_task(running.machine.freezes.next())
        alarm = asyncio.create_task(running.started.network.alarm.wait())
        tasks: set[asyncio.Task[Any]] = {ending, death, closed, alarm, freeze}
        if idle_seconds is not None:
            tasks.add(asyncio.create_task(running.machine.use.wait_idle(idle_seconds)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ending in done:
                return ending.result()
            if alarm in done:
                return end_of(EndReason.FLOW_ALERT, f"an alert rule ended it: it {alarm.result().message}")
            if not done & {death, closed}:
                return freeze.result() if freeze in done else end_of(EndReason.IDLE)
            await asyncio.wait({death}, timeout=_DEATH_SECONDS)
            return end_of(EndReason.MACHINE_DIED, _death_message(death, closed))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self, held: HeldSandbox, end: SandboxEnd | _NotResumed) -> None:
        if isinstance(end, _NotResumed):
            await self._report_problem(held, end.problem)
            return
        try:
            await retry_until_written(
                lambda: self._link.sandbox_ended(held.key, end), "sandbox_ended", self._retry_times, **held.ids
            )
        except LeaseLost:
            log.warning("sandbox_given_up", **held.ids, reason="the lease ran out before its end was reported")
        else:
            log.info("sandbox_ended", **held.ids, reason=end.reason, message=end.message)

    async def _report_problem(self, held: HeldSandbox, problem: ResumeProblem) -> None:
        try:
            await retry_until_written(
                lambda: self._link.sandbox_not_resumed(held.key, problem),
                "sandbox_not_resumed",
                self._retry_times,
                **held.ids,
            )
        except LeaseLost:
            log.warning("sandbox_given_up", **held.ids, reason="the lease ran out; it is paused again")
        else:
            log.warning("sandbox_not_resumed", **held.ids, code=problem.code, error=problem.message)

    async def _within_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Report an end when the worker is stopped, for a bounded time; the next start makes up for what was not."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=self._retry_times.stop_seconds)
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.warning("end_not_written", error=str(error))


async def _kill(machine: Machine) -> None:
    """Kill the machine now: its removal, which is slow, and the last look at its traffic come afterwards."""
    with contextlib.suppress(BelljarError, OSError):  # the block of its owner ends it
        await machine.kill()


def _opening(started: StartedMachine) -> AbstractAsyncContextManager[Session]:
    connection = started.provisioned.connection
    if started.base is not None:
        return connection.resume_session()
    return connection.open_session(started.session_request)


def _closed(held: HeldSandbox) -> BelljarError:
    """Return the error for callers of a machine that is gone."""
    if held.is_paused:
        return SandboxPaused("the sandbox is paused; resume it first")
    reason = held.end or end_of(EndReason.NODE_LOST if held.lease.lost else EndReason.WORKER_STOPPED)
    return SandboxEnded(f"the sandbox has ended: {reason.message}", reason=reason.reason)


def _stopped(held: HeldSandbox) -> SandboxEnd | _NotResumed:
    if held.end is None and held.sandbox.status is SandboxStatus.RESUMING and not held.has_run:
        return _NotResumed(ResumeProblem(code=HostError.code, message="the worker of its node was stopped; try again"))
    return held.end or end_of(EndReason.WORKER_STOPPED)


def _failed_start(held: HeldSandbox, error: Exception) -> SandboxEnd | _NotResumed:
    if isinstance(error, CommandFailed):
        error = MachineError(f"the machine could not begin a session: {error}")
    if isinstance(error, OSError):
        error = host_error(error, "start the sandbox's machine")
    if not isinstance(error, BelljarError):
        report_failure("start_sandbox", error, **held.ids)
        return end_of(EndReason.START_FAILED, "internal error; see the server's log")
    log.warning("sandbox_not_started", **held.ids, error=error.message, code=error.code)
    if held.sandbox.status is SandboxStatus.RESUMING and not held.has_run:
        return _NotResumed(ResumeProblem(code=error.code, message=error.message))
    reason = EndReason.SNAPSHOT_DAMAGED if isinstance(error, SnapshotUnusable) else EndReason.START_FAILED
    return end_of(reason, error.message)


def _death_message(death: asyncio.Task[Any], closed: asyncio.Task[None]) -> str:
    if death.done() and not death.cancelled() and death.exception() is None:
        return f"its machine died: {death.result().message}"
    if closed.done() and not closed.cancelled() and (error := closed.exception()) is not None:
        return f"its machine was ended: {error}"
    return "its machine died"
