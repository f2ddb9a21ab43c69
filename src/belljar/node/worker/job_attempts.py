"""Carries out attempts: from an assignment to the end that the control plane has of it.

An attempt whose lease is lost changes nothing, and its machine is ended before another can begin. Nothing that fails
here ends the worker, or any attempt but its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.leases import LeaseKey
from belljar.model.errors import BelljarError, HostError, MachineError, host_error
from belljar.model.image import Image
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.node.machines.protocol import Hypervisor
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.attempt_trace import trace_lost_attempt
from belljar.node.worker.cancellation import JobCancelled
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.job_network import Networking
from belljar.node.worker.journal import earlier_end
from belljar.node.worker.leases import RunningAttempt
from belljar.node.worker.package_installer import Installer
from belljar.node.worker.recorder import Recorder, recording
from belljar.node.worker.retry import retry_until_written
from belljar.node.worker.runner import JobInput, JobRun, JobRunner, RetryUntilCancelled
from belljar.system.background import report_failure
from belljar.system.counters import increment
from belljar.system.tracing import trace_id_of

log = structlog.get_logger()


class JobAttempts:
    """The attempts of one worker."""

    def __init__(
        self, context: WorkerContext, capacity: Capacity, networking: Networking, installer: Installer
    ) -> None:
        self._context = context
        self._link = context.link
        self._retry_times = context.retry_times
        #: The hypervisor that was chosen last.
        self.hypervisor: Hypervisor | None = None
        self._runner = JobRunner(
            context.settings,
            images=context.images,
            choose_hypervisor=self.choose_hypervisor,
            warm_ups=context.warm_ups,
            provisioner=context.provisioner,
            networking=networking,
            installer=installer,
            spare_mb=capacity.spare_mb,
        )

    async def choose_hypervisor(self, image: Image) -> Hypervisor:
        """Return what runs the image's machines. Raises MissingTool, HostError."""
        self.hypervisor = await self._context.hypervisor(image)
        return self.hypervisor

    async def carry_out(self, running: RunningAttempt) -> None:
        """Carry out one attempt and report its end. Never raises, except when the worker is stopped."""
        if running.job.traceparent is not None:  # in every log event of this task
            structlog.contextvars.bind_contextvars(trace_id=trace_id_of(running.job.traceparent))
        try:
            await self._run_and_record(running)
        except Exception as error:  # noqa: BLE001 (its lease runs out, and the job is given to another)
            report_failure("attempt", error, **running.ids)

    async def decline(self, lease: LeaseKey) -> None:
        """Give back a job that was assigned and cannot be begun; the attempt does not count."""
        await self._within_stop(self._link.decline(lease))

    async def _run_and_record(self, running: RunningAttempt) -> None:
        recorder: Recorder | None = None
        async with AsyncExitStack() as stack:
            try:
                async with running.lease:
                    if await self._finish_as_before(running):
                        return
                    recorder = await self._retry_of(running)(
                        "open_log",
                        lambda: stack.enter_async_context(
                            recording(self._context, running.assignment, running.lose_lease)
                        ),
                    )
                    await self._run(recorder, running)
            except asyncio.CancelledError:
                await self._within_stop(self._stopped(running, recorder))
                raise
            except Exception as error:  # noqa: BLE001 (`_failed` distinguishes them)
                await self._failed(running, recorder, error)

    async def _finish_as_before(self, running: RunningAttempt) -> bool:
        """End the job by the end that its script had in an earlier attempt here; return False when it had none.

        That attempt's lease ran out before the control plane knew. Raises LeaseLost, OSError.
        """
        data_dir = self._context.settings.data_dir
        noted = await asyncio.to_thread(earlier_end, data_dir, running.job) if running.job.attempt > 1 else None
        if noted is None:
            return False
        path, entry = noted
        finish = partial(self._link.finish, running.key, entry.outcome)
        await retry_until_written(finish, "finish", self._retry_times, **running.ids)
        path.unlink(missing_ok=True)
        log.warning("job_end_recovered", **running.ids, status=entry.outcome.status, of_attempt=entry.attempt)
        return True

    async def _run(self, recorder: Recorder, running: RunningAttempt) -> None:
        """Run the job in a machine, and record its end. Raises JobCancelled when it is cancelled before it has one."""
        run = JobRun(
            job=running.job,
            fetch=lambda: self._fetch(running),
            observer=recorder,
            cancel=running.cancel,
            holder=running.holder,
            retry=self._retry_of(running),
        )
        async with self._runner.run(run) as end:
            running.lease.release()
            await recorder.ended(end)

    async def _fetch(self, running: RunningAttempt) -> JobInput:
        lease = running.key
        return JobInput(
            script_disk=await self._link.script_disk(lease),
            stdin=await self._link.stdin(lease),
            secrets=await self._link.secrets(lease) if running.job.secrets else (),
        )

    def _retry_of(self, running: RunningAttempt) -> RetryUntilCancelled:
        return RetryUntilCancelled(retry_times=self._retry_times, cancel=running.cancel, fields=running.ids)

    # --- attempts that do not end by their script -----------------------------------------------------------------

    async def _failed(self, running: RunningAttempt, recorder: Recorder | None, error: Exception) -> None:
        """Decide what becomes of the job: its script ended all the same, it is refused, or the attempt is lost."""
        if recorder is not None and recorder.outcome is not None:
            running.lease.release()
            if not isinstance(error, TimeoutError):
                report_failure("attempt_end", error, **running.ids)
            await recorder.record()
            return
        if isinstance(error, JobCancelled):
            await self._cancelled(running, recorder)
            return
        if running.lease.lost is not None or isinstance(error, LeaseLost):
            increment("belljar_lost_leases")
            reason, code = running.lease.lost or str(error), LeaseLost.code
        elif isinstance(error, (MachineError, HostError)):
            reason, code = error.message, error.code
        elif isinstance(error, BelljarError) and recorder is not None:
            await recorder.refuse(error)
            return
        elif isinstance(error, OSError):
            refusal = host_error(error, "run the job")
            reason, code = refusal.message, refusal.code
        else:
            report_failure("attempt", error, **running.ids)
            reason, code = "internal error; see the server log", "internal_error"
        if recorder is not None:
            await recorder.flush()
        trace_lost_attempt(running.job, running.claimed_at, code)
        await retry_until_written(
            lambda: self._requeue(running.key, reason, code), "requeue", self._retry_times, **running.ids
        )

    async def _cancelled(self, running: RunningAttempt, recorder: Recorder | None) -> None:
        """End a job that was cancelled before it had a machine."""
        if recorder is not None:
            await recorder.ended(AttemptEnd(stop=Stop.CANCELLED))
            return
        outcome = Outcome(status=Status.CANCELLED, finished_at=datetime.now(UTC))
        await retry_until_written(
            lambda: self._link.finish(running.key, outcome), "finish", self._retry_times, **running.ids
        )

    async def _stopped(self, running: RunningAttempt, recorder: Recorder | None) -> None:
        """Report the attempt's end when the worker is stopped, or that the attempt is lost."""
        if recorder is not None and recorder.outcome is not None:
            await recorder.record()
            return
        if recorder is not None:
            await recorder.flush()
        await self._requeue(running.key, "its worker was stopped", "worker_stopped")

    async def _within_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the last of an attempt when the worker is stopped, for a bounded time.

        A control plane that refuses must not keep a process alive; the next start recovers the job.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=self._retry_times.stop_seconds)
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.warning("end_not_written", error=str(error))

    async def _requeue(self, lease: LeaseKey, reason: str, code: str) -> None:
        """Give the attempt up: the control plane queues the job again or ends it."""
        try:
            status: Status | None = await self._link.requeue(lease, code=code, reason=reason)
        except LeaseLost:
            status = None  # another attempt has the job, or it has ended
        log.warning("attempt_lost", job=lease.job_id, attempt=lease.attempt, code=code, error=reason, status=status)
