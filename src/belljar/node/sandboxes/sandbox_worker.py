"""The part of a worker that takes sandboxes: claims them while there is room, and holds them beside its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import SandboxAssignment, SandboxLink
from belljar.model.errors import HostError
from belljar.model.image import Image
from belljar.node.frozen.store import FrozenStore
from belljar.node.frozen.unused import UnusedFrozen
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Hypervisor
from belljar.node.sandboxes.freezing import Freezer, pauses
from belljar.node.sandboxes.held import HeldSandbox
from belljar.node.sandboxes.holder import SandboxHolder
from belljar.node.sandboxes.leases import SandboxLeases
from belljar.node.sandboxes.machine_start import MachineStarter
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.job_network import Networking
from belljar.node.worker.retry import retry_until_written, wait_for_event
from belljar.system.background import supervise

log = structlog.get_logger()

#: How long one claim waits. A lease counts from the request, and disk and images change meanwhile.
_CLAIM_WAIT_SECONDS = 2.0
#: When the capacity changes, a claim that is about to be given a sandbox has this long: undoing it costs two writes.
_CLAIM_GRACE_SECONDS = 0.1


class SandboxWorker:
    """Holds the sandboxes of one node. `run` until cancelled, which ends them all."""

    def __init__(
        self,
        context: WorkerContext,
        link: SandboxLink,
        node: NodeIdentity,
        capacity: Capacity,
        *,
        choose_hypervisor: Callable[[Image], Awaitable[Hypervisor]],
        networking: Networking,
    ) -> None:
        self._context = context
        self._link = link
        self._node = node
        self._capacity = capacity
        self._changed = capacity.watch()
        self.leases = SandboxLeases(link, node, context.settings.lease_seconds)
        self._store = FrozenStore(context.settings.paths.frozen, capacity.disk)
        starter = MachineStarter(
            context,
            link,
            store=self._store,
            choose_hypervisor=choose_hypervisor,
            networking=networking,
            capacity=capacity,
        )
        freezer = Freezer(link, self._store, context.retry_times, context.settings.boot_timeout_seconds)
        self._holder = SandboxHolder(link, starter, freezer, context.retry_times)

    async def run(self) -> None:
        """Work until cancelled. First gives up what an earlier process of this node held: its machines are gone.

        What that process paused and could not report is reported.
        """
        times = self._context.retry_times
        await self._report_pauses()
        count = await retry_until_written(lambda: self._link.forget_sandboxes(self._node), "forget_sandboxes", times)
        if count:
            log.warning("sandboxes_lost", count=count, node=self._node.name)
        async with asyncio.TaskGroup() as group:
            for name, work in (
                ("keep_sandbox_leases", self.leases.keep),
                ("watch_sandbox_orders", self.leases.watch_orders),
                ("remove_frozen", UnusedFrozen(self._link, self._node, self._store).run),
            ):
                group.create_task(self._supervised(name, work), name=name)
            await self._supervised("claim_sandboxes", lambda: self._claim_sandboxes(group))

    async def _report_pauses(self) -> None:
        await in_thread(self._store.sweep)
        for lease, frozen in await in_thread(lambda: pauses(self._store.manifests())):
            try:
                await retry_until_written(
                    lambda lease=lease, frozen=frozen: self._link.sandbox_paused(lease, frozen),  # type: ignore[misc]
                    "sandbox_paused",
                    self._context.retry_times,
                )
            except LeaseLost:
                continue  # it was resumed since, or has ended

    async def _supervised(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        pauses = self._context.retry_times
        await supervise(
            name, work, first_pause_seconds=pauses.first_pause_seconds, max_pause_seconds=pauses.max_pause_seconds
        )

    async def _claim_sandboxes(self, group: asyncio.TaskGroup) -> None:
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
            resources = assignment.sandbox.needed
            if not self._capacity.has_room(resources):  # a job has taken it meanwhile
                await self._decline(assignment)
                continue
            held = self.leases.add(assignment, requested_at)
            self._capacity.hold(held.holder, resources)
            log.info("sandbox_claimed", **held.ids, project=assignment.sandbox.project, worker=self._node.name)
            group.create_task(self._hold(held), name=f"sandbox {held.holder}")

    def _claim_request(self) -> ClaimRequest | None:
        vcpus, memory_mb = self._capacity.free()
        disk_mb = self._capacity.free_disk_mb()
        if not (vcpus and memory_mb) or disk_mb is None:
            return None
        images = frozenset(self._context.images.digests())
        return ClaimRequest(vcpus=vcpus, memory_mb=memory_mb, disk_mb=disk_mb, images=images)

    async def _claim(self, request: ClaimRequest) -> SandboxAssignment | None:
        """Claim a sandbox; None when none came in time, or when the capacity changed meanwhile. Raises HostError."""
        claim = asyncio.create_task(self._link.claim_sandbox(self._node, request, _CLAIM_WAIT_SECONDS))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({claim, changed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({claim}, timeout=_CLAIM_GRACE_SECONDS)
        except asyncio.CancelledError:
            await _end(claim, changed)
            if not claim.cancelled() and claim.exception() is None and (assignment := claim.result()) is not None:
                await self._decline(assignment)
            raise
        await _end(claim, changed)
        return None if claim.cancelled() else claim.result()

    async def _decline(self, assignment: SandboxAssignment) -> None:
        try:
            await self._link.decline_sandbox(assignment.lease)
        except (LeaseLost, HostError) as error:  # its lease runs out, and it is claimed again or ended
            log.warning("sandbox_not_declined", sandbox=assignment.sandbox.id, error=error.message)

    async def _hold(self, held: HeldSandbox) -> None:
        try:
            await self._holder.hold(held)
        finally:
            self.leases.remove(held)
            self._capacity.release(held.holder)


async def _end(*tasks: asyncio.Task[object]) -> None:
    """Cancel the tasks and wait for their ends, even when cancelled."""
    for task in tasks:
        task.cancel()
    await uninterrupted(asyncio.wait(tasks))
