"""Pauses, resumes, snapshots and forks of sandboxes for their callers. Touches no machine itself."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from belljar.control.jobs.egress_limit import check_egress, egress_limit_of
from belljar.control.jobs.resolve import check_resources
from belljar.control.quotas.service import counting_refusals
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.sandboxes.request import ForkRequest
from belljar.control.sandboxes.resolve import resolve_fork
from belljar.control.sandboxes.service import SandboxService, missing_snapshot
from belljar.control.secrets.service import SecretService
from belljar.control.store.sandboxes import SandboxUse
from belljar.link.sandboxes import FreezeRequest
from belljar.model.errors import BelljarError, Conflict, HostError
from belljar.model.ids import new_id
from belljar.model.quotas import QuotaLimits
from belljar.model.sandbox import FrozenState, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import NoRoom, SandboxPaused, SecretsInMemory, SnapshotUnusable, TooManySnapshots
from belljar.model.sandbox_snapshot import SandboxSnapshot
from belljar.settings import Settings

log = structlog.get_logger()

#: Longer than a machine is written to a slow disk.
_PAUSE_SECONDS = 600.0
_RETRY_SECONDS = 5
_BEING_PAUSED = (SandboxStatus.RUNNING, SandboxStatus.PAUSING)


class FreezeService:
    """The operations of the API on frozen machines."""

    def __init__(
        self, *, sandboxes: SandboxService, queue: SandboxQueue, secrets: SecretService, settings: Settings
    ) -> None:
        self._sandboxes = sandboxes
        self._secrets = secrets
        self._store = queue.store
        self._pauses = queue.pauses
        self._snapshots = queue.snapshots
        self._machines = queue.machines
        self._changes = queue.changes
        self._settings = settings

    async def pause(self, project: str, sandbox_id: str) -> Sandbox:
        """Pause a sandbox and return it; a paused one is returned unchanged.

        Raises NotFound, SandboxEnded, SandboxNotReady, SandboxUnreachable, DiskFull, HostError; after an error of the
        node it goes on.
        """
        sandbox = await self._sandboxes.get(project, sandbox_id)
        if sandbox.status not in (SandboxStatus.PAUSING, SandboxStatus.PAUSED):
            machine = self._machines.get(sandbox)
            with contextlib.suppress(SandboxPaused):  # another request pauses it, and is waited for
                await machine.freeze(FreezeRequest(id=new_id("snap"), pause=True))
        sandbox = await self._sandboxes.wait(
            project, sandbox_id, _PAUSE_SECONDS, lambda found: found.status not in _BEING_PAUSED
        )
        if sandbox.status is SandboxStatus.RUNNING:
            raise Conflict(f"the sandbox {sandbox_id} was resumed, or could not be paused; try again")
        if sandbox.status is not SandboxStatus.PAUSED:
            self._machines.get(sandbox)  # raises the error that says why
        return sandbox

    async def request_resume(self, project: str, sandbox_id: str) -> Sandbox:
        """Have a paused sandbox resumed; one that runs is returned unchanged. Raises NotFound, SandboxEnded, …"""
        limits = await self._sandboxes.check_used_up(project)
        sandbox = await self._sandboxes.get(project, sandbox_id)
        found = sandbox
        if sandbox.status is SandboxStatus.PAUSED:
            self._check_egress(sandbox, limits)
        with counting_refusals():
            resumed = await self._pauses.request_resume(
                project, sandbox.id, lambda use: self._sandboxes.check_count(use, found, limits)
            )
        sandbox = resumed or sandbox
        if sandbox.status is SandboxStatus.RESUMING:
            self._changes.notify(sandbox.id)
            self._changes.waiting.notify()
        elif sandbox.status is not SandboxStatus.RUNNING:
            self._machines.get(sandbox)  # raises the error that says why
        return sandbox

    async def snapshot(self, project: str, sandbox_id: str, *, keep_secrets: bool) -> SandboxSnapshot:
        """Take a snapshot of a sandbox, which goes on; that of a paused one is what it is kept in.

        Raises NotFound, SecretsInMemory, TooManySnapshots, SandboxEnded, DiskFull, …
        """
        sandbox = await self._sandboxes.get(project, sandbox_id)
        _check_secrets(sandbox, keep_secrets)
        self._check_snapshots(await self._snapshots.count(project) + 1)
        frozen = await self._freeze(sandbox)
        snapshot = SandboxSnapshot(
            id=frozen.id,
            project=project,
            sandbox_id=sandbox.id,
            node=frozen.node,
            created_at=datetime.now(UTC),
            stored_bytes=frozen.stored_bytes,
            spec=sandbox.spec,
        )
        with counting_refusals():
            return await self._snapshots.insert(snapshot, self._check_snapshots)

    async def fork(self, project: str, sandbox_id: str, request: ForkRequest) -> list[Sandbox]:
        """Queue copies of a sandbox, all or none; they go on from where it is now.

        Raises NotFound, SecretsInMemory, TooManySandboxes, QuotaExceeded, SandboxEnded, DiskFull, …
        """
        limits = await self._sandboxes.check_used_up(project)
        sandbox = await self._sandboxes.get(project, sandbox_id)
        _check_secrets(sandbox, request.secrets == "keep")
        count = request.count
        self._check_egress(sandbox, limits)
        check_resources(sandbox.spec.resources, self._settings, limits, min_memory_mb=0, needs="for the fork")
        await self._secrets.check(project, sandbox.spec.secrets)
        with counting_refusals():  # before anything is frozen
            use = await self._use_with(sandbox, count)
            self._sandboxes.check_count(use, sandbox, limits, count)
        frozen = await self._freeze(sandbox)
        forks = [resolve_fork(sandbox, frozen, request, self._settings) for _ in range(count)]
        with counting_refusals():
            await self._store.insert_forks(
                sandbox, forks, lambda now: self._sandboxes.check_count(now, sandbox, limits, count)
            )
        log.info("sandbox_forked", sandbox=sandbox.id, project=project, count=count, snapshot=frozen.id)
        self._changes.waiting.notify()
        return forks

    def _check_egress(self, sandbox: Sandbox, limits: QuotaLimits) -> None:
        """Raise InvalidOption when the project may not have such an egress policy any more."""
        check_egress(sandbox.spec.egress, egress_limit_of(sandbox.project, self._settings, limits), self._settings)

    async def _use_with(self, sandbox: Sandbox, count: int) -> SandboxUse:
        """Return what the project would have with so many more like this one."""
        use, resources = await self._store.use(sandbox.project), sandbox.spec.resources
        return replace(
            use,
            sandboxes=use.sandboxes + count,
            vcpus=use.vcpus + count * resources.vcpus,
            memory_mb=use.memory_mb + count * resources.memory_mb,
        )

    async def _freeze(self, sandbox: Sandbox) -> FrozenState:
        """Return what a paused sandbox is kept in, or a frozen copy of one that runs."""
        if sandbox.status is SandboxStatus.PAUSED and sandbox.frozen is not None:
            return sandbox.frozen
        return await self._machines.get(sandbox).freeze(FreezeRequest(id=new_id("snap"), pause=False))

    def _check_snapshots(self, count: int) -> None:
        """Raise TooManySnapshots when that is one snapshot too many."""
        maximum = self._settings.max_snapshots_per_project
        if count > maximum:
            raise TooManySnapshots(
                f"the project has {count - 1} snapshots of sandboxes; the maximum is {maximum} (setting "
                "max_snapshots_per_project): delete some first",
                limit=maximum,
            )

    # --- snapshots --------------------------------------------------------------------------------------------------

    async def get_snapshot(self, project: str, snapshot_id: str) -> SandboxSnapshot:
        """Return the project's snapshot. Raises NotFound."""
        found = await self._snapshots.get(project, snapshot_id)
        if found is None:
            raise missing_snapshot(snapshot_id)
        return found

    async def snapshots(
        self, project: str, *, limit: int, cursor: str | None
    ) -> tuple[list[SandboxSnapshot], str | None]:
        """Return a page of the project's snapshots, newest first, and the cursor of the next page."""
        return await self._snapshots.list(project, limit=limit, cursor=cursor)

    async def delete_snapshot(self, project: str, snapshot_id: str) -> None:
        """Delete a snapshot; its node removes the pieces that nothing else needs. Raises NotFound."""
        if not await self._snapshots.delete(project, snapshot_id):
            raise missing_snapshot(snapshot_id)


def resume_error(sandbox: Sandbox) -> BelljarError:
    """Return why a sandbox could not be resumed, as the error of the request."""
    problem = sandbox.problem
    if problem is None:
        return Conflict(f"the sandbox {sandbox.id} is {sandbox.status}; try again")
    details = {"sandbox_id": sandbox.id}
    if problem.code == NoRoom.code:
        return NoRoom(f"the sandbox stays paused: {problem.message}", retry_after=_RETRY_SECONDS, **details)
    if problem.code == SnapshotUnusable.code:
        return SnapshotUnusable(f"the sandbox stays paused: {problem.message}", **details)
    return HostError(f"the sandbox stays paused: {problem.message}", reason=problem.code, **details)


def _check_secrets(sandbox: Sandbox, keep: bool) -> None:
    if sandbox.spec.secrets and not keep:
        names = ", ".join(sorted({use.name for use in sandbox.spec.secrets}))
        raise SecretsInMemory(
            f'the sandbox has secrets in its memory ({names}); send "secrets": "keep" to have them copied with it'
        )
