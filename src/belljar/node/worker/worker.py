"""The worker: claims jobs while there is room, runs each attempt beside the others, and writes how it ended, once.

What it writes is guarded by the store: an attempt whose lease was lost to another worker changes nothing, and its
machine is ended before another can begin. Stopping it (cancelling `run`) takes its machines along and hands its jobs
back to the queue. Nothing that fails on the way ends the worker, or any attempt but its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import structlog

from belljar.control.jobs.blob_names import stdin_blob
from belljar.model.errors import BelljarError, HostError, MachineError, host_error
from belljar.model.image import Image
from belljar.model.job import Job
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.node.machines.host.usage import resident_mb
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.cancellation import JobCancelled
from belljar.node.worker.capacity import Capacity, output_mb
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.heartbeat import Heartbeat
from belljar.node.worker.job_logs import JobLogs
from belljar.node.worker.job_network import Networking
from belljar.node.worker.lease import Lease
from belljar.node.worker.leases import Leases, Running
from belljar.node.worker.package_installer import Installer
from belljar.node.worker.recorder import Recorder, recording
from belljar.node.worker.recovery import Recovery
from belljar.node.worker.retry import retry_until_written
from belljar.node.worker.runner import JobInput, JobRun, JobRunner, RetryUntilCancelled
from belljar.system.background import report_failure, supervise
from belljar.system.counters import increment

log = structlog.get_logger()

#: How often a worker looks by itself for jobs, and for requests to cancel, that another process wrote.
LOOK_SECONDS = 0.5
_MEASURE_SECONDS = 1.0
#: A node that was silent for so long does not come back with its images: jobs that need them wait in vain.
_GONE_SECONDS = 3600.0
#: A folder of images that is not there for a moment, or is mounted late, costs no job that waits for one of them.
_MISSING_SECONDS = 300.0
#: The image that most first jobs want.
_FIRST_IMAGE = "python"


class Worker:
    """One node's worker. `run` until cancelled."""

    def __init__(self, context: WorkerContext, worker_id: str, capacity: Capacity) -> None:
        self.id = worker_id
        self.capacity = capacity
        self._context = context
        self._retry_times = context.retry_times
        self._running: dict[str, Running] = {}
        self._room = asyncio.Event()
        self._hypervisor: Hypervisor | None = None
        self._networking = Networking(context.settings)
        self._installer = Installer(context.settings, self._networking, capacity)
        self._runner = JobRunner(
            context.settings,
            images=context.images,
            choose_hypervisor=self._choose_hypervisor,
            warm_ups=context.warm_ups,
            provisioner=context.provisioner,
            networking=self._networking,
            installer=self._installer,
            spare_mb=capacity.spare_mb,
        )
        self._logs = JobLogs(context.settings.data_dir, context.blobs, self._retry_times, context.changes)
        self._leases = Leases(context.claims, worker_id, context.settings.lease_seconds, lambda: self._running.values())
        self._heartbeat = Heartbeat(context, worker_id, capacity, lambda: len(self._running), lambda: self._hypervisor)

    async def run(self) -> None:
        """Work until cancelled. First puts right what an earlier run of this worker left unfinished."""
        recovery = Recovery(self._context, self.id, self._logs)
        await recovery.clear_host(self._installer)
        await retry_until_written(recovery.recover_jobs, "recover", self._retry_times)
        async with self._networking, asyncio.TaskGroup() as group:
            for name, work in (
                ("choose_hypervisor", self._prepare_first_job),
                ("provisioner", self._run_provisioner),
                ("keep_leases", self._keep_leases),
                ("heartbeat", self._heartbeat.run),
                ("pass_on_cancelling", self._pass_on_cancelling),
                ("measure_memory", self._measure),
                ("keep_logs", self._keep_logs),
            ):
                group.create_task(self._supervised(name, work), name=name)
            await self._supervised("claim_jobs", lambda: self._claim_while_there_is_room(group))

    async def _supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        pauses = self._retry_times
        await supervise(
            name, work, first_pause_seconds=pauses.first_pause_seconds, max_pause_seconds=pauses.max_pause_seconds
        )

    async def _prepare_first_job(self) -> None:
        """Find out early what runs machines here, and have a snapshot made, so that the first job need not wait."""
        context, settings = self._context, self._context.settings
        images = {image.name: image for image in context.images.list()}
        for image in [images[name] for name in (_FIRST_IMAGE, *sorted(images)) if name in images][:1]:
            try:
                hypervisor = await self._choose_hypervisor(image)
                shape = round_up_shape(settings.default_vcpus, settings.default_memory_mb, None)
                spec = MachineSpec(image=image, shape=shape, script_disk=None)
                context.provisioner.prepare_for(hypervisor, spec, await context.warm_ups.of(image))
            except BelljarError as error:
                log.warning("no_hypervisor", error=error.message)

    async def _run_provisioner(self) -> None:
        await self._context.provisioner.run(self.capacity.spare_mb)

    # --- claiming -------------------------------------------------------------------------------------------------

    async def _claim_while_there_is_room(self, group: asyncio.TaskGroup) -> None:
        expected = False
        while True:
            self._room.clear()
            running = await self._claim(expected)
            if running is None:
                expected = await self._wait_for_work()
                continue
            expected = False
            job = running.job
            log.info("job_claimed", job=job.id, attempt=job.attempt, project=job.project, worker=self.id)
            group.create_task(self._attempt(running), name=f"attempt {running.holder}")

    async def _claim(self, expected: bool) -> Running | None:
        """The next job that fits, held by this worker. Raises HostError."""
        loop = asyncio.get_running_loop()
        vcpus, memory_mb = self.capacity.free()
        disk_mb = self.capacity.free_disk_mb()
        if not (vcpus and memory_mb) or disk_mb is None:
            return None
        seconds, asked_at = self._context.settings.lease_seconds, loop.time()
        job = await self._context.claims.claim(
            self.id,
            vcpus=vcpus,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            lease_seconds=seconds,
            expected=expected,
            largest=self.capacity.largest(),
            images=self._context.images.digests(),
        )
        if job is None:
            return None
        running = Running(job, Lease(asked_at, seconds))
        self.capacity.hold(running.holder, job.resources, output_mb(job, self._context.settings))
        self._running[running.holder] = running
        return running

    async def _wait_for_work(self) -> bool:
        """Until a job was queued (True), one here ended, or a moment has passed: another process may have queued."""
        ended = asyncio.create_task(self._room.wait())
        queued = asyncio.create_task(self._context.changes.wait_queued(LOOK_SECONDS))
        try:
            await asyncio.wait({ended, queued}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, queued):
                task.cancel()
            await asyncio.gather(ended, queued, return_exceptions=True)
        return not queued.cancelled() and queued.result()

    # --- attempts -------------------------------------------------------------------------------------------------

    async def _attempt(self, running: Running) -> None:
        """One attempt, from the claim to what is written of it. Never raises, except when the worker is stopped."""
        job = running.job
        try:
            await self._attempt_and_record(running)
        except Exception as error:  # noqa: BLE001 (its lease runs out, and the store gives it to another)
            report_failure("attempt", error, job=job.id, attempt=job.attempt)
        finally:
            self.capacity.release(running.holder)
            del self._running[running.holder]
            self._room.set()
            self._context.changes.notify(job.id)

    async def _attempt_and_record(self, running: Running) -> None:
        recorder: Recorder | None = None
        async with AsyncExitStack() as stack:
            try:
                async with running.lease:
                    recorder = await self._retry_of(running)(
                        "open_log",
                        lambda: stack.enter_async_context(recording(self._context, self._logs, self.id, running.job)),
                    )
                    await self._run(recorder, running)
            except asyncio.CancelledError:
                await self._within_stop(self._stopped(running.job, recorder))
                raise
            except Exception as error:  # noqa: BLE001 (told apart in there)
                await self._failed(running, recorder, error)

    async def _run(self, recorder: Recorder, running: Running) -> None:
        """Run the job in a machine, and record its end. Raises JobCancelled when it is cancelled before it has one."""
        job = running.job
        run = JobRun(
            job=job,
            fetch=lambda: self._fetch(job),
            observer=recorder,
            cancel=running.cancel,
            holder=running.holder,
            retry=self._retry_of(running),
        )
        async with self._runner.run(run) as end:
            running.lease.release()
            await recorder.ended(end)
            self._context.changes.notify(job.id)

    async def _fetch(self, job: Job) -> JobInput:
        disk = await self._context.scripts.disk(job.script_id)
        stdin = await self._context.blobs.get_bytes(stdin_blob(job.id)) if job.stdin_bytes else b""
        return JobInput(script_disk=disk, stdin=stdin)

    def _retry_of(self, running: Running) -> RetryUntilCancelled:
        ids: dict[str, object] = {"job": running.job.id, "attempt": running.job.attempt}
        return RetryUntilCancelled(retry_times=self._retry_times, cancel=running.cancel, fields=ids)

    async def _choose_hypervisor(self, image: Image) -> Hypervisor:
        self._hypervisor = await self._context.hypervisor(image)
        return self._hypervisor

    # --- attempts that do not end by their script -----------------------------------------------------------------

    async def _failed(self, running: Running, recorder: Recorder | None, error: Exception) -> None:
        """Decide what becomes of the job: its script ended all the same, it is refused, or the attempt is lost."""
        job = running.job
        if recorder is not None and recorder.outcome is not None:
            running.lease.release()
            if not isinstance(error, TimeoutError):
                report_failure("attempt_end", error, job=job.id, attempt=job.attempt)
            await recorder.record()
            return
        if isinstance(error, JobCancelled):
            await self._cancelled(running, recorder)
            return
        if running.lease.lost is not None:
            increment("belljar_lost_leases")
            reason, code = running.lease.lost, "lease_lost"
        elif isinstance(error, (MachineError, HostError)):
            reason, code = error.message, error.code
        elif isinstance(error, BelljarError) and recorder is not None:
            await recorder.refuse(error)
            return
        elif isinstance(error, OSError):
            told = host_error(error, "run the job")
            reason, code = told.message, told.code
        else:
            report_failure("attempt", error, job=job.id, attempt=job.attempt)
            reason, code = "belljar itself failed; the server's log has the details", "internal_error"
        if recorder is not None:
            await recorder.flush()
        await retry_until_written(
            lambda: self._give_back(job, reason, code), "give_back", self._retry_times, job=job.id, attempt=job.attempt
        )

    async def _cancelled(self, running: Running, recorder: Recorder | None) -> None:
        """End a job that was cancelled before it had a machine."""
        if recorder is not None:
            await recorder.ended(AttemptEnd(stop=Stop.CANCELLED))
            return
        outcome = Outcome(status=Status.CANCELLED, finished_at=datetime.now(UTC))
        await retry_until_written(
            lambda: self._context.claims.finish(self.id, running.job, outcome),
            "finish",
            self._retry_times,
            job=running.job.id,
        )

    async def _stopped(self, job: Job, recorder: Recorder | None) -> None:
        """The worker is told to stop: the store hears of the attempt's end, or that it is lost."""
        if recorder is not None and recorder.outcome is not None:
            await recorder.record()
            return
        if recorder is not None:
            await recorder.flush()
        await self._give_back(job, "its worker was stopped", "worker_stopped")

    async def _within_stop(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the last of an attempt when the worker is told to stop, for a bounded time.

        A store that refuses must not keep a process alive; the next start recovers the job.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=self._retry_times.stop_seconds)
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=1)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.warning("end_not_written", error=str(error))

    async def _give_back(self, job: Job, reason: str, code: str) -> None:
        """The attempt is lost: queue the job again or end it, as the store decides."""
        after = await self._context.claims.requeue(self.id, job, reason=reason, code=code)
        increment("belljar_attempts", outcome="lost")
        status = after.status if after is not None else None
        log.warning("attempt_lost", job=job.id, attempt=job.attempt, code=code, error=reason, status=status)
        if after is not None:
            self._logs.note_lost(after)
            # Where the next attempt finds it, on whatever node that is.
            await self._logs.keep(job.id, writers=1)
            self._context.changes.notify(job.id)
            self._context.changes.notify_queued()

    # --- the background -------------------------------------------------------------------------------------------

    async def _measure(self) -> None:
        """Know what machines really take, where more was promised than there is."""
        while self.capacity.overcommit > 1:
            await asyncio.sleep(_MEASURE_SECONDS)
            self.capacity.used_mb = await asyncio.to_thread(resident_mb, self._context.provisioner.pids())

    async def _pass_on_cancelling(self) -> None:
        while True:
            await self._context.changes.wait_cancelled(LOOK_SECONDS)
            if not self._running:
                continue
            wanted = await self._context.claims.cancel_requested(self.id)
            for running in self._running.values():
                if running.job.id in wanted:
                    running.cancel.set()

    async def _keep_leases(self) -> None:
        """Renew this node's leases, and put right what dead nodes left."""
        renewed = True
        while True:
            await self._leases.pause(renewed=renewed)
            renewed = await self._leases.renew()
            if renewed:
                await self._put_others_right()

    async def _put_others_right(self) -> None:
        """Give jobs of dead nodes back, and end those that wait for an image that no node has any more."""
        for job in await self._leases.expire():
            self._context.changes.notify(job.id)
            self._context.changes.notify_queued()
        lease_seconds = self._context.settings.lease_seconds
        images = await self._context.nodes.images(_GONE_SECONDS, _MISSING_SECONDS)
        if images is None:
            return
        for job in await self._context.claims.fail_without_image(images, waited_seconds=lease_seconds):
            log.warning("job_failed_without_image", job=job.id, image=job.image)
            self._context.changes.notify(job.id)

    async def _keep_logs(self) -> None:
        """Bring logs to the blob store that could not be brought there when their attempts ended."""
        while True:
            await self._logs.sweep(self._context.claims)
            await asyncio.sleep(self._retry_times.sweep_seconds)
