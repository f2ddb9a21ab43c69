"""Creates, lists, extends and ends sandboxes, and finds the machine of one. Touches no machine itself."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC, datetime

import structlog

from belljar.control.audit.operation import record_nothing
from belljar.control.quotas.admission import check_sandbox, exceeded
from belljar.control.quotas.service import QuotaService, counting_refusals
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.sandboxes.request import SandboxRequest
from belljar.control.sandboxes.resolve import ImageNames, image_of, resolve_from_snapshot, resolve_sandbox
from belljar.control.secrets.service import SecretService
from belljar.control.store.sandboxes import SandboxUse
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import Conflict, InvalidOption, NotFound
from belljar.model.quotas import CountedQuota, QuotaLimits
from belljar.model.resources import NodeLimits
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import (
    NoSandboxNode,
    SandboxEnded,
    SandboxNotReady,
    SandboxPaused,
    SandboxUnreachable,
    TooManySandboxes,
)
from belljar.model.usage_series import UsageSeries
from belljar.settings import Settings
from belljar.system.disk_space import DiskSpace

log = structlog.get_logger()

_ID = re.compile(r"sb_[0-9A-HJKMNP-TV-Z]{26}\Z")
#: How often a wait looks whether its caller's key is still valid, and for changes by other processes.
_LOOK_SECONDS = 1.0
_DELETED = "it was deleted"
#: Quotas that a sandbox may not begin beyond: what machines used today.
_USED_UP = (CountedQuota.VCPU_SECONDS, CountedQuota.MEMORY_MB_SECONDS)


class SandboxService:
    """The operations of the API on sandboxes."""

    def __init__(
        self,
        *,
        queue: SandboxQueue,
        images: ImageNames,
        settings: Settings,
        quotas: QuotaService,
        secrets: SecretService,
        largest: Callable[[], Awaitable[Collection[NodeLimits]]],
        disk: DiskSpace,
    ) -> None:
        self._queue = queue
        self._store = queue.store
        self._snapshots = queue.snapshots
        self._usage = queue.usage
        self._machines = queue.machines
        self._changes = queue.changes
        self._images = images
        self._settings = settings
        self._quotas = quotas
        self._secrets = secrets
        self._largest = largest
        self._disk = disk

    async def create(self, project: str, request: SandboxRequest) -> Sandbox:
        """Queue a sandbox for a node. The same request with the key of an earlier one returns that sandbox.

        Raises NoSandboxNode, InvalidOption, UnknownImage, SecretMissing, QuotaExceeded, Conflict, DiskFull, …
        """
        if not self._queue.has_node:
            raise NoSandboxNode(
                "this server runs without a worker (--no-worker), and sandboxes of other processes cannot be reached; "
                "create the sandbox on a server that runs with its worker"
            )
        fingerprint = None
        if request.idempotency_key is not None:
            fingerprint = _fingerprint(request)
            first = await self._store.by_key(project, request.idempotency_key)
            if first is not None:
                record_nothing("sandbox.create")
                return _same_request(first, fingerprint)
        self._disk.require()
        limits = await self.check_used_up(project)
        resolved = await self._resolve(project, request, limits)
        sandbox = resolved.model_copy(update={"request_sha256": fingerprint})
        with counting_refusals():
            stored = await self._store.insert(sandbox, lambda use: self.check_count(use, sandbox, limits))
        if stored.id != sandbox.id:
            return _same_request(stored, fingerprint)
        log.info("sandbox_created", sandbox=sandbox.id, project=project, image=sandbox.spec.image)
        self._changes.waiting.notify()
        return sandbox

    async def _resolve(self, project: str, request: SandboxRequest, limits: QuotaLimits) -> Sandbox:
        if request.snapshot is not None:
            snapshot = await self._snapshots.get(project, request.snapshot)
            if snapshot is None:
                raise missing_snapshot(request.snapshot)
            await self._secrets.check(project, snapshot.spec.secrets)
            return resolve_from_snapshot(request, snapshot, settings=self._settings, limits=limits)
        image = await asyncio.to_thread(image_of, request, self._images)
        await self._secrets.check(project, request.secrets)
        return resolve_sandbox(
            request,
            image,
            project=project,
            settings=self._settings,
            largest=await self._largest(),
            limits=limits,
        )

    def check_count(self, use: SandboxUse, sandbox: Sandbox, limits: QuotaLimits, new: int = 1) -> None:
        """Raise TooManySandboxes or QuotaExceeded when a project has too many sandboxes.

        `use` includes the `new` ones, each as large as `sandbox`.
        """
        vcpus = sandbox.spec.resources.vcpus
        check_sandbox(limits, sandboxes=use.sandboxes - 1, vcpus=use.vcpus - vcpus, more_vcpus=vcpus)
        maximum = self._settings.max_sandboxes_per_project
        if use.sandboxes > maximum:
            wanted = "" if new == 1 else f"{new} more are too many: "
            raise TooManySandboxes(
                f"{wanted}the project has {use.sandboxes - new} sandboxes that have not ended; the maximum is "
                f"{maximum} (setting max_sandboxes_per_project): end some first",
                limit=maximum,
            )

    async def check_used_up(self, project: str) -> QuotaLimits:
        """Return the limits of a project that has not used up its time of machines. Raises QuotaExceeded."""
        limits = await self._quotas.limits(project)
        if any(limits.of(quota) is not None for quota in _USED_UP):
            use = (await self._quotas.usage(project, 1)).use
            for quota in _USED_UP:
                limit = limits.of(quota)
                if limit is not None and use.used[quota] >= limit:
                    with counting_refusals():
                        raise exceeded(quota, limit, use)
        return limits

    async def get(self, project: str, sandbox_id: str) -> Sandbox:
        """Return the project's sandbox. Raises NotFound."""
        found = await self._store.get(project, sandbox_id) if _ID.match(sandbox_id) else None
        if found is None:
            raise _missing(sandbox_id)
        return found

    async def list(
        self, project: str, *, status: SandboxStatus | None, label: str | None, limit: int, cursor: str | None
    ) -> tuple[list[Sandbox], str | None]:
        """Return a page of the project's sandboxes, newest first, and the cursor of the next page."""
        return await self._store.list(project, status=status, label=label, limit=limit, cursor=cursor)

    async def delete(self, project: str, sandbox_id: str) -> Sandbox:
        """Order the end of a sandbox; one that has ended is returned unchanged. Raises NotFound."""
        wanted = _ID.match(sandbox_id) is not None
        found = await self._store.request_end(project, sandbox_id, EndReason.DELETED, _DELETED) if wanted else None
        if found is None:
            raise _missing(sandbox_id)
        self._changes.notify(sandbox_id)
        self._changes.orders.notify()
        return found

    async def extend(self, project: str, sandbox_id: str, lifetime_seconds: float) -> Sandbox:
        """Move the end of a sandbox to `lifetime_seconds` from now. Raises NotFound, SandboxEnded, InvalidOption."""
        sandbox = await self.get(project, sandbox_id)
        age_seconds = (datetime.now(UTC) - sandbox.created_at).total_seconds() - sandbox.paused_seconds
        maximum = self._settings.max_sandbox_lifetime_seconds
        if age_seconds + lifetime_seconds > maximum:
            left = max(0.0, maximum - age_seconds)
            raise InvalidOption(
                f"lifetime_seconds is {lifetime_seconds:g}; at most {left:.0f} are left of {maximum:g} since its "
                "creation (setting max_sandbox_lifetime_seconds)",
                option="lifetime_seconds",
                limit=left,
            )
        found = await self._store.extend(project, sandbox_id, lifetime_seconds)
        if found is None:
            raise _missing(sandbox_id)
        if found.status.terminal or found.end_requested is not None or found.paused_at is not None:
            self._machines.get(found)  # raises the error that says why
        self._changes.orders.notify()
        return found

    async def set_public_ports(self, project: str, sandbox_id: str, ports: tuple[int, ...]) -> Sandbox:
        """Replace the ports that anyone may reach by their host names. Raises NotFound, SandboxEnded."""
        found = await self._store.set_public_ports(project, (await self.get(project, sandbox_id)).id, ports)
        if found is None:
            raise _missing(sandbox_id)
        if found.status.terminal:
            self._machines.get(found)  # raises the error that says why
        return found

    async def wait(
        self,
        project: str,
        sandbox_id: str,
        seconds: float,
        until: Callable[[Sandbox], bool],
        *,
        ended: Callable[[], bool] = lambda: False,
    ) -> Sandbox:
        """Return the sandbox once `until` holds, or as it is after the time, or when `ended` returns True.

        `ended` returns whether the caller's key is not valid any more. Raises NotFound.
        """
        deadline = time.monotonic() + seconds
        with self._changes.watching(sandbox_id) as watch:
            while True:
                count = watch.count
                sandbox = await self.get(project, sandbox_id)
                left = deadline - time.monotonic()
                if until(sandbox) or left <= 0 or ended():
                    return sandbox
                await watch.wait_beyond(count, min(left, _LOOK_SECONDS))

    async def machine(self, project: str, sandbox_id: str) -> tuple[Sandbox, SandboxMachine]:
        """Return a running sandbox and its machine.

        Raises NotFound, SandboxEnded, SandboxPaused, SandboxNotReady, SandboxUnreachable.
        """
        sandbox = await self.get(project, sandbox_id)
        return sandbox, self._machines.get(sandbox)

    async def usage_series(self, project: str, sandbox_id: str) -> UsageSeries:
        """Return what a sandbox's last machine has used: from the machine, else what its node reported last.

        Raises NotFound.
        """
        sandbox = await self.get(project, sandbox_id)
        if sandbox.status is SandboxStatus.RUNNING:
            with contextlib.suppress(SandboxEnded, SandboxPaused, SandboxNotReady, SandboxUnreachable):
                return await self._machines.get(sandbox).usage_series()
        stored = await self._usage.get(sandbox.id)
        if stored is not None:
            return stored.series
        resources = sandbox.spec.resources
        return UsageSeries(vcpus=resources.vcpus, memory_limit_bytes=resources.memory_mb << 20)


def _fingerprint(request: SandboxRequest) -> str:
    """Return a digest that differs for different requests with the same idempotency key."""
    fields = request.model_dump(mode="json", exclude={"idempotency_key"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _same_request(first: Sandbox, fingerprint: str | None) -> Sandbox:
    if first.request_sha256 != fingerprint:
        raise Conflict(
            f"the idempotency key belongs to another request, of the sandbox {first.id}; use a new key",
            sandbox_id=first.id,
        )
    return first


def missing_snapshot(snapshot_id: str) -> NotFound:
    """Return the error for a snapshot that the project does not have."""
    return NotFound(f"there is no snapshot {snapshot_id[:80]!r} in this project; list them with GET /v1/snapshots")


def _missing(sandbox_id: str) -> NotFound:
    return NotFound(f"there is no sandbox {sandbox_id[:80]!r} in this project; list them with GET /v1/sandboxes")
