"""The worker: claims jobs while there is room, runs each attempt beside the others, and writes how it ended, once.

What it writes is guarded by the store: an attempt whose lease was lost to another worker changes nothing. Stopping it
(cancelling `run`) takes its machines along and hands its jobs back to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from belljar import __version__
from belljar.blobs.log import LogStream, LogWriter, keep_log, log_path
from belljar.errors import BelljarError, HostError, MachineError
from belljar.jobs.blob_names import stdin_blob
from belljar.jobs.model import Job
from belljar.machines.firecracker.folder import jails
from belljar.machines.leftovers import clear_leftovers
from belljar.machines.protocol import Hypervisor, MachineSpec
from belljar.machines.shapes import fitted
from belljar.machines.supply import Ready
from belljar.machines.usage import resident_mb
from belljar.network.leftovers import clear_network_leftovers
from belljar.store.nodes import Node
from belljar.worker.attempt import AttemptEnd, run_attempt
from belljar.worker.builder import builder_resources
from belljar.worker.capacity import Capacity, output_mb
from belljar.worker.installing import Installer, Wanted
from belljar.worker.networking import Networking
from belljar.worker.plan import plan_attempt
from belljar.worker.recorder import Recorder, persistently
from belljar.worker.rooms import WorkerRooms

log = structlog.get_logger()

#: How often a worker looks by itself for jobs, and for requests to cancel, that another process wrote.
LOOK_SECONDS = 0.5
#: Pause after the store could not be read or written.
TROUBLE_SECONDS = 2.0
_MEASURE_SECONDS = 1.0
#: A node that was silent for so long does not come back with its images: jobs that need them wait in vain.
_GONE_SECONDS = 3600.0
#: The image that most first jobs want.
_FIRST_IMAGE = "python"


@dataclass(slots=True)
class _Running:
    job: Job
    cancel: asyncio.Event = field(default_factory=asyncio.Event)


class Worker:
    """One node's worker. `run` until cancelled."""

    def __init__(self, rooms: WorkerRooms, worker_id: str, capacity: Capacity) -> None:
        self.id = worker_id
        self.capacity = capacity
        self._rooms = rooms
        self._running: dict[str, _Running] = {}
        self._room = asyncio.Event()
        self._started_at = datetime.now(UTC)
        self._hypervisor: Hypervisor | None = None
        self._networking = Networking(rooms.settings)
        self._installer = Installer(rooms.settings, self._networking.attached, self._room_for_builder)

    async def run(self) -> None:
        """Work until cancelled. First puts right what an earlier run of this worker left unfinished."""
        await self._recover()
        await self._beat()
        async with self._networking, asyncio.TaskGroup() as group:
            group.create_task(self._choose_hypervisor())
            group.create_task(self._rooms.supply.run(self.capacity.spare_mb))
            group.create_task(self._keep_alive())
            group.create_task(self._look_after())
            group.create_task(self._measure())
            await self._claim_while_there_is_room(group)

    async def _recover(self) -> None:
        rooms = self._rooms
        removed = await clear_leftovers(jails=jails(rooms.settings)) + await asyncio.to_thread(clear_network_leftovers)
        if removed:
            log.warning("leftovers_removed", count=removed)
        await self._installer.clear()
        for name in ("artifacts", "scratch"):
            shutil.rmtree(rooms.settings.data_dir / "run" / name, ignore_errors=True)
        for job in await rooms.claims.recover(self.id):
            log.warning("job_recovered", job=job.id, status=job.status, attempt=job.attempt)
            await self._tell_of_loss(job)

    async def _choose_hypervisor(self) -> None:
        """Find out early what runs machines here, and have a snapshot made, so that the first job need not wait."""
        rooms, settings = self._rooms, self._rooms.settings
        images = {image.name: image for image in rooms.images.list()}
        for image in [images[name] for name in (_FIRST_IMAGE, *sorted(images)) if name in images][:1]:
            try:
                self._hypervisor = await rooms.hypervisor(image)
                shape = fitted(settings.default_vcpus, settings.default_memory_mb, None)
                spec = MachineSpec(image=image, shape=shape, script_disk=None)
                rooms.supply.prefer(self._hypervisor, spec, await rooms.preparations.of(image))
            except BelljarError as error:
                log.warning("no_hypervisor", error=error.message)

    async def _claim_while_there_is_room(self, group: asyncio.TaskGroup) -> None:
        expected = False
        while True:
            self._room.clear()
            job = None
            try:
                job = await self._claim(expected)
            except HostError as error:
                log.error("cannot_claim", error=error.message)
                await asyncio.sleep(TROUBLE_SECONDS)
            if job is None:
                expected = await self._wait_for_work()
                continue
            expected = False
            self.capacity.hold(job.id, job.resources, output_mb(job, self._rooms.settings))
            self._running[job.id] = _Running(job)
            group.create_task(self._attempt(job), name=f"attempt {job.id}")

    async def _claim(self, expected: bool) -> Job | None:
        vcpus, memory_mb = self.capacity.free()
        disk_mb = self.capacity.free_disk_mb()
        if not (vcpus and memory_mb) or disk_mb is None:
            return None
        return await self._rooms.claims.claim(
            self.id,
            vcpus=vcpus,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            lease_seconds=self._rooms.settings.lease_seconds,
            expected=expected,
            largest=self.capacity.largest(),
            images=self._rooms.images.digests(),
        )

    async def _wait_for_work(self) -> bool:
        """Until a job was queued (True), one here ended, or a moment has passed: another process may have queued."""
        ended = asyncio.create_task(self._room.wait())
        queued = asyncio.create_task(self._rooms.changes.wait_queued(LOOK_SECONDS))
        try:
            await asyncio.wait({ended, queued}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (ended, queued):
                task.cancel()
            await asyncio.gather(ended, queued, return_exceptions=True)
        return not queued.cancelled() and queued.result()

    async def _attempt(self, job: Job) -> None:
        """One attempt, from the claim to what is written of it. Never raises, except when the worker is stopped."""
        recorder = None
        try:
            recorder = Recorder(self._rooms, self.id, job)
            with contextlib.closing(recorder):
                await self._run(recorder, self._running[job.id])
        except asyncio.CancelledError:
            # Not `persistently`: a store that refuses must not keep a process alive; the next start recovers the job.
            await asyncio.shield(self._give_back(job, recorder, "its worker was stopped", "worker_stopped"))
            raise
        except (MachineError, HostError) as error:
            log.warning("attempt_lost", job=job.id, attempt=job.attempt, code=error.code, error=error.message)
            reason, code = error.message, error.code
            await persistently(lambda: self._give_back(job, recorder, reason, code))
        except BelljarError as error:
            assert recorder is not None
            await recorder.refuse(error)
        except Exception:
            log.exception("attempt_broke", job=job.id, attempt=job.attempt)
            reason = "belljar itself failed; the server's log has the details"
            await persistently(lambda: self._give_back(job, recorder, reason, "internal_error"))
        finally:
            self.capacity.release(job.id)
            del self._running[job.id]
            self._room.set()
            self._rooms.changes.notify(job.id)

    async def _run(self, recorder: Recorder, running: _Running) -> None:
        job, rooms = running.job, self._rooms
        image = rooms.images.of_job(job.image, job.image_digest)
        await asyncio.to_thread(rooms.images.verify, image)
        disk = await rooms.scripts.disk(job.script_id)
        stdin = await rooms.blobs.get_bytes(stdin_blob(job.id)) if job.stdin_bytes else b""
        hypervisor = recorder.hypervisor = self._hypervisor = await rooms.hypervisor(image)
        preparation = await rooms.preparations.of(image)
        provided = None
        if job.dependencies is not None and job.dependencies.requirements:
            wanted = Wanted(
                job=job,
                image=image,
                script_disk=disk,
                hypervisor=hypervisor,
                onlooker=recorder,
                cancel=running.cancel,
            )
            with recorder.timed("dependencies"):
                provided = await self._installer.provide(wanted)
        if rooms.supply.pool is not None:
            await rooms.supply.pool.shrink_to(self.capacity.spare_mb())

        network, seconds = self._networking.of(job), rooms.settings.boot_timeout_seconds

        def take(spec: MachineSpec) -> AbstractAsyncContextManager[Ready]:
            return network.taking(lambda plug: rooms.supply.machine(hypervisor, spec, preparation, seconds, plug))

        async def ended(end: AttemptEnd) -> None:
            end.traffic = await network.traffic()
            await recorder.ended(end)
            rooms.changes.notify(job.id)

        plan = plan_attempt(job, image, disk, stdin, rooms.settings, network=network.wanted, env=network.environment)
        plan = provided.on(plan) if provided is not None else plan
        await run_attempt(plan, take, recorder, running.cancel, ended)

    @contextlib.contextmanager
    def _room_for_builder(self, job_id: str) -> Iterator[None]:
        """Count the machine that installs a job's packages among what this node has promised."""
        self.capacity.hold(f"{job_id} builder", builder_resources(self._rooms.settings))
        try:
            yield
        finally:
            self.capacity.release(f"{job_id} builder")

    async def _give_back(self, job: Job, recorder: Recorder | None, reason: str, code: str) -> None:
        """The attempt is lost: queue the job again or end it, as the store decides."""
        if recorder is not None:
            await recorder.flush()
        after = await self._rooms.claims.requeue(self.id, job, reason=reason, code=code)
        if after is not None:
            await self._tell_of_loss(after)

    async def _tell_of_loss(self, job: Job) -> None:
        """Say in the job's log that an attempt was lost; what it had said stays there."""
        rooms, lost = self._rooms, job.lost_attempts[-1]
        with LogWriter(log_path(rooms.settings.data_dir, job.id)) as writer:
            text = f"\n[belljar: attempt {lost.attempt} was lost: {lost.message}]\n"
            writer.append(LogStream.CONSOLE, text.encode())
        if job.status.terminal:
            await keep_log(rooms.settings.data_dir, rooms.blobs, job.id)
        rooms.changes.notify(job.id)
        rooms.changes.notify_queued()

    async def _measure(self) -> None:
        """Know what machines really take, where more was promised than there is."""
        while self.capacity.overcommit > 1:
            await asyncio.sleep(_MEASURE_SECONDS)
            self.capacity.used_mb = await asyncio.to_thread(resident_mb, self._rooms.supply.pids())

    async def _look_after(self) -> None:
        """Pass on requests to cancel."""
        while True:
            await self._rooms.changes.wait_cancelled(LOOK_SECONDS)
            if not self._running:
                continue
            try:
                wanted = await self._rooms.claims.cancel_requested(self.id)
            except HostError as error:
                log.error("cannot_look_after_jobs", error=error.message)
                await asyncio.sleep(TROUBLE_SECONDS)
                continue
            for job_id in wanted & self._running.keys():
                self._running[job_id].cancel.set()

    async def _keep_alive(self) -> None:
        """Say that this node is there, renew its leases, and put right what dead nodes left."""
        lease_seconds = self._rooms.settings.lease_seconds
        while True:
            await asyncio.sleep(lease_seconds / 3)
            try:
                await self._beat()
                if self._running:
                    await self._rooms.claims.renew(self.id, list(self._running), lease_seconds=lease_seconds)
                for job in await self._rooms.claims.expire(lease_seconds):
                    log.warning("lease_expired", job=job.id, status=job.status, attempt=job.attempt)
                    self._rooms.changes.notify(job.id)
                await self._fail_without_image(lease_seconds)
            except HostError as error:
                log.error("cannot_write_heartbeat", error=error.message)

    async def _fail_without_image(self, lease_seconds: float) -> None:
        """End jobs that wait for an image that is on no node any more."""
        images = await self._rooms.nodes.images(_GONE_SECONDS)
        if images is None:
            return
        for job in await self._rooms.claims.fail_without_image(images, waited_seconds=lease_seconds):
            log.warning("job_failed_without_image", job=job.id, image=job.image)
            self._rooms.changes.notify(job.id)

    async def _beat(self) -> None:
        vcpus_free, memory_free_mb = self.capacity.free()
        hypervisor, pool, snapshots = self._hypervisor, self._rooms.supply.pool, self._rooms.supply.snapshots
        await self._rooms.nodes.heartbeat(
            Node(
                id=self.id,
                hostname=socket.gethostname(),
                version=__version__,
                started_at=self._started_at,
                heartbeat_at=datetime.now(UTC),
                hypervisor=hypervisor.name if hypervisor else None,
                accelerator=hypervisor.accelerator if hypervisor else None,
                vcpus=self.capacity.vcpus,
                memory_mb=self.capacity.memory_mb,
                largest_memory_mb=self.capacity.largest().memory_mb,
                vcpus_free=vcpus_free,
                memory_free_mb=memory_free_mb,
                largest_disk_mb=self.capacity.largest().disk_mb,
                running_jobs=len(self._running),
                images=tuple(sorted(self._rooms.images.digests())),
                waiting_clones=sum(pool.counts().values()) if pool is not None else 0,
                waiting_memory_mb=round(pool.memory_mb if pool is not None else 0),
                snapshots=tuple(await asyncio.to_thread(snapshots.list)) if snapshots is not None else (),
            )
        )
