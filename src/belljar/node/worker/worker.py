"""The worker: claims jobs while there is room, and carries their attempts out beside each other.

Stopping it (cancelling `run`) ends its machines and requeues its jobs. Nothing that fails on the way ends the worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from belljar.link.leases import Assignment, ClaimRequest, NodeIdentity
from belljar.model.errors import BelljarError
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.usage import resident_mb
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.sandboxes.sandbox_worker import SandboxWorker
from belljar.node.worker.capacity import Capacity, output_mb
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.heartbeat import Heartbeat
from belljar.node.worker.job_attempts import JobAttempts
from belljar.node.worker.job_network import Networking
from belljar.node.worker.leases import Leases, RunningAttempt
from belljar.node.worker.package_installer import Installer
from belljar.node.worker.recovery import Recovery
from belljar.node.worker.retry import retry_until_written, wait_for_event
from belljar.system.background import supervise

log = structlog.get_logger()

#: How long one claim waits for a job. Short: a lease counts from the request, and disk and images change meanwhile.
_CLAIM_WAIT_SECONDS = 0.5
#: When the capacity changes, a claim that is about to be given a job has this long: undoing it costs two writes.
_CLAIM_GRACE_SECONDS = 0.01
_MEASURE_SECONDS = 1.0
#: The image that most first jobs need.
_FIRST_IMAGE = "python"


class Worker:
    """One node's worker. `run` until cancelled."""

    def __init__(self, context: WorkerContext, name: str, capacity: Capacity) -> None:
        self.node = NodeIdentity.new(name)
        self.capacity = capacity
        self._changed = capacity.watch()
        self._context = context
        self._networking = Networking(context.settings)
        self._installer = Installer(context.settings, self._networking, capacity)
        self._attempts = JobAttempts(context, capacity, self._networking, self._installer)
        self._leases = Leases(context.link, self.node, context.settings.lease_seconds)
        self._sandboxes = (
            SandboxWorker(
                context,
                context.sandbox_link,
                self.node,
                capacity,
                choose_hypervisor=self._attempts.choose_hypervisor,
                networking=self._networking,
            )
            if context.sandbox_link is not None
            else None
        )
        self._heartbeat = Heartbeat(
            context, self.node, capacity, lambda: len(self._leases), lambda: self._attempts.hypervisor
        )

    @property
    def pool(self) -> WarmPool | None:
        """The clones that wait for jobs and sandboxes."""
        return self._context.provisioner.pool

    def pids(self) -> list[int]:
        """Return the processes of the machines that jobs and sandboxes have now."""
        return [*self._context.provisioner.pids()]

    async def run(self) -> None:
        """Work until cancelled. First repairs what an earlier process of this worker left unfinished."""
        recovery = Recovery(self._context, self.node)
        await recovery.clear_host(self._installer)
        await retry_until_written(recovery.recover_jobs, "recover", self._context.retry_times)
        async with self._networking, asyncio.TaskGroup() as group:
            for name, work in (
                ("choose_hypervisor", self._prepare_first_job),
                ("provisioner", self._run_provisioner),
                ("keep_leases", self._leases.keep),
                ("heartbeat", self._heartbeat.run),
                ("watch_cancellations", self._leases.watch_cancellations),
                ("measure_memory", self._measure_memory),
            ):
                group.create_task(self._supervised(name, work), name=name)
            if self._sandboxes is not None:
                group.create_task(self._supervised("sandboxes", self._sandboxes.run), name="sandboxes")
            await self._supervised("claim_jobs", lambda: self._claim_jobs(group))

    async def _supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        pauses = self._context.retry_times
        await supervise(
            name, work, first_pause_seconds=pauses.first_pause_seconds, max_pause_seconds=pauses.max_pause_seconds
        )

    # --- claims ---------------------------------------------------------------------------------------------------

    async def _claim_jobs(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._changed.clear()
            request = self._claim_request()
            if request is None:
                await wait_for_event(self._changed, _CLAIM_WAIT_SECONDS)
                continue
            requested_at = asyncio.get_running_loop().time()
            assignment = await self._claim(request)
            if assignment is None:
                continue
            job = assignment.job
            if not self.capacity.has_room(job.resources):  # a sandbox has taken it meanwhile
                await self._attempts.decline(assignment.lease)
                continue
            log.info("job_claimed", job=job.id, attempt=job.attempt, project=job.project, worker=self.node.name)
            running = self._leases.add(assignment, requested_at)
            self.capacity.hold(running.holder, job.resources, output_mb(job, self._context.settings))
            group.create_task(self._carry_out(running), name=f"attempt {running.holder}")

    def _claim_request(self) -> ClaimRequest | None:
        """Return what there is room for; None when no job fits at all."""
        vcpus, memory_mb = self.capacity.free()
        disk_mb = self.capacity.free_disk_mb()
        if not (vcpus and memory_mb) or disk_mb is None:
            return None
        return ClaimRequest(
            vcpus=vcpus,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            largest=self.capacity.largest(),
            images=frozenset(self._context.images.digests()),
        )

    async def _claim(self, request: ClaimRequest) -> Assignment | None:
        """Claim a job; None when none came in time, or when the capacity changed meanwhile. Raises HostError."""
        claim = asyncio.create_task(self._context.link.claim(self.node, request, _CLAIM_WAIT_SECONDS))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({claim, changed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({claim}, timeout=_CLAIM_GRACE_SECONDS)
            await _end_tasks(claim, changed)
        except asyncio.CancelledError:
            await _end_tasks(claim, changed)
            if not claim.cancelled() and claim.exception() is None and (assignment := claim.result()) is not None:
                await self._attempts.decline(assignment.lease)
            raise
        return None if claim.cancelled() else claim.result()

    async def _carry_out(self, running: RunningAttempt) -> None:
        try:
            await self._attempts.carry_out(running)
        finally:
            self._leases.remove(running)
            self.capacity.release(running.holder)

    # --- the background -------------------------------------------------------------------------------------------

    async def _prepare_first_job(self) -> None:
        """Choose the hypervisor and have a snapshot made early, so that the first job need not wait."""
        context, settings = self._context, self._context.settings
        images = {image.name: image for image in context.images.list()}
        for image in [images[name] for name in (_FIRST_IMAGE, *sorted(images)) if name in images][:1]:
            try:
                hypervisor = await self._attempts.choose_hypervisor(image)
                shape = round_up_shape(settings.default_vcpus, settings.default_memory_mb, None)
                spec = MachineSpec(image=image, shape=shape, script_disk=None)
                context.provisioner.prepare_for(hypervisor, spec, await context.warm_ups.of(image))
            except BelljarError as error:
                log.warning("no_hypervisor", error=error.message)

    async def _run_provisioner(self) -> None:
        await self._context.provisioner.run(self.capacity.spare_mb)

    async def _measure_memory(self) -> None:
        """Measure what machines really take, where more was promised than there is."""
        while self.capacity.overcommit > 1:
            await asyncio.sleep(_MEASURE_SECONDS)
            self.capacity.used_mb = await asyncio.to_thread(resident_mb, self.pids())


async def _end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait for their ends, even when cancelled."""
    for task in tasks:
        task.cancel()
    await uninterrupted(asyncio.wait(tasks))
