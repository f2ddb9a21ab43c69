"""Holds one sandbox: starts its machine, opens the session, watches over both, ends them, and reports the end.

Nothing that fails here ends the worker, or any other sandbox. A sandbox whose lease is lost is ended without a report.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.sandboxes import SandboxLink, SandboxStart
from belljar.model.errors import BelljarError, MachineError, host_error
from belljar.model.job import MachineInfo, Timings
from belljar.model.sandbox import EndReason, SandboxEnd
from belljar.model.sandbox_errors import SandboxEnded
from belljar.node.guest.command import CommandFailed
from belljar.node.guest.session import Session
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import Machine
from belljar.node.sandboxes.held import HeldSandbox, end_of
from belljar.node.sandboxes.machine import HeldMachine
from belljar.node.sandboxes.machine_start import MachineStarter, StartedMachine
from belljar.node.sandboxes.usage import sampled
from belljar.node.worker.flow_reports import FlowReports
from belljar.node.worker.job_network import network_use
from belljar.node.worker.retry import RetryTimes, retry_until_written
from belljar.system.background import report_failure

log = structlog.get_logger()

#: The reason of a machine's death may become known a moment after its session broke.
_DEATH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Running:
    started: StartedMachine
    session: Session
    machine: HeldMachine
    flow_reports: FlowReports


class SandboxHolder:
    """Holds the sandboxes of one worker."""

    def __init__(self, link: SandboxLink, starter: MachineStarter, retry_times: RetryTimes) -> None:
        self._link = link
        self._starter = starter
        self._retry_times = retry_times

    async def hold(self, held: HeldSandbox) -> None:
        """Hold a sandbox to its end, and report that. Never raises, except when the worker is stopped."""
        try:
            end = await self._live(held)
            if end is not None:
                await self._report(held, end)
        except asyncio.CancelledError:
            await self._within_stop(self._report(held, held.end or end_of(EndReason.WORKER_STOPPED)))
            raise
        except Exception as error:  # noqa: BLE001 (its lease runs out, and the control plane ends it)
            report_failure("hold_sandbox", error, **held.ids)

    async def _live(self, held: HeldSandbox) -> SandboxEnd | None:
        """Start its machine and keep it until the sandbox is to end. None when the lease was lost."""
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

    async def _start_and_watch(self, held: HeldSandbox) -> SandboxEnd:
        async with AsyncExitStack() as stack:
            running = await held.unless_ending(self._start(held, stack))
            if running is None:
                return await held.wait_ending()
            try:
                async with sampled(self._link, held, running.machine):
                    end = await self._watch(held, running)
                held.finish(end)
            finally:
                reason = held.end or end_of(EndReason.NODE_LOST if held.lease.lost else EndReason.WORKER_STOPPED)
                closed = SandboxEnded(f"the sandbox has ended: {reason.message}", reason=reason.reason)
                await uninterrupted(running.machine.close(closed))
            await _kill(running.started.provisioned.machine)
            network = running.started.network
            traffic, flows = await asyncio.gather(network.traffic(), network.finish_flows())
            await running.flow_reports.finish(flows)
            return end.model_copy(update={"network": network_use(traffic, flows)})

    async def _start(self, held: HeldSandbox, stack: AsyncExitStack) -> _Running:
        began = time.monotonic()
        started = await self._starter.start(held, stack)
        session = await stack.enter_async_context(started.provisioned.connection.open_session(started.session_request))
        phases = dict(started.provisioned.phases)
        phases["session"] = round((time.monotonic() - began) * 1000 - sum(phases.values()), 3)
        machine = HeldMachine(session, started.defaults, started.size)
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
        flow_reports = FlowReports(lambda flows: self._link.report_sandbox_flows(held.key, flows), held.ids)
        stack.callback(flow_reports.close)
        started.network.observe(held.ids, flow_reports.offer)
        return _Running(started, session, machine, flow_reports)

    async def _watch(self, held: HeldSandbox, running: _Running) -> SandboxEnd:
        """Wait until the sandbox is to end: asked, at its deadline, idle for too long, or because its machine died."""
        machine, idle_seconds = running.started.provisioned.machine, held.sandbox.spec.idle_seconds
        ending = asyncio.create_task(held.wait_ending())
        death = asyncio.create_task(machine.death())
        closed = asyncio.create_task(running.session.wait_closed())
        alarm = asyncio.create_task(running.started.network.alarm.wait())
        tasks: set[asyncio.Task[Any]] = {ending, death, closed, alarm}
        if idle_seconds is not None:
            tasks.add(asyncio.create_task(running.machine.use.wait_idle(idle_seconds)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ending in done:
                return ending.result()
            if alarm in done:
                return end_of(EndReason.FLOW_ALERT, f"an alert rule ended it: it {alarm.result().message}")
            if not done & {death, closed}:
                return end_of(EndReason.IDLE)
            await asyncio.wait({death}, timeout=_DEATH_SECONDS)
            return end_of(EndReason.MACHINE_DIED, _death_message(death, closed))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self, held: HeldSandbox, end: SandboxEnd) -> None:
        try:
            await retry_until_written(
                lambda: self._link.sandbox_ended(held.key, end), "sandbox_ended", self._retry_times, **held.ids
            )
        except LeaseLost:
            log.warning("sandbox_given_up", **held.ids, reason="the lease ran out before its end was reported")
        else:
            log.info("sandbox_ended", **held.ids, reason=end.reason, message=end.message)

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


def _failed_start(held: HeldSandbox, error: Exception) -> SandboxEnd:
    if isinstance(error, CommandFailed):
        error = MachineError(f"the machine could not begin a session: {error}")
    if isinstance(error, OSError):
        error = host_error(error, "start the sandbox's machine")
    if not isinstance(error, BelljarError):
        report_failure("start_sandbox", error, **held.ids)
        return end_of(EndReason.START_FAILED, "internal error; see the server's log")
    log.warning("sandbox_not_started", **held.ids, error=error.message, code=error.code)
    return end_of(EndReason.START_FAILED, error.message)


def _death_message(death: asyncio.Task[Any], closed: asyncio.Task[None]) -> str:
    if death.done() and not death.cancelled() and death.exception() is None:
        return f"its machine died: {death.result().message}"
    if closed.done() and not closed.cancelled() and (error := closed.exception()) is not None:
        return f"its machine was ended: {error}"
    return "its machine died"
