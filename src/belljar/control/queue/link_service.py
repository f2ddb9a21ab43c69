"""The link's implementation over the store, the blobs and the logs: in one process with a node, or behind HTTPS.

It must never trust a node with more than its lease: every write names the lease and is refused when that is not held.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from belljar.control.blobs.store import Blobs
from belljar.control.flows.service import FlowService
from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.jobs.changes import Changes
from belljar.control.logs.job_logs import JobLogs
from belljar.control.queue.attempt_log import AttemptLog
from belljar.control.queue.held_leases import HeldAttempt, HeldLeases
from belljar.control.scripts.disks import ScriptDisks
from belljar.control.secrets.service import SecretService
from belljar.control.store.claims import SqlClaims
from belljar.control.store.nodes import Node, SqlNodes
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.catalog import Images
from belljar.link import errors as link_errors
from belljar.link.errors import LeaseLost
from belljar.link.leases import Assignment, ClaimRequest, LeaseKey, NodeIdentity, Renewal, StartReport
from belljar.link.nodes import NodeReport
from belljar.link.output import OutputOffsets, OutputPiece
from belljar.link.secrets import JobSecret
from belljar.model import errors
from belljar.model.errors import JOB_ERRORS, InvalidRequest, NotFound, TooLarge, host_error
from belljar.model.flows import FlowReport
from belljar.model.image import Manifest
from belljar.model.job import Job
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.model.usage_series import UsageSeries
from belljar.settings import Settings
from belljar.system import tracing
from belljar.system.counters import increment
from belljar.system.histograms import observe

log = structlog.get_logger()

#: How often a call that waits looks at the database: another process may have written.
_LOOK_SECONDS = 0.5
#: Searches of a node that find nothing use about this part of one processor, however many jobs wait that do not fit.
_SEARCH_SHARE = 0.1
_MIB = 1024 * 1024
#: The codes of errors that jobs end with.
_CODES = frozenset({*JOB_ERRORS, *(each.code for each in (*errors.classes(), *link_errors.classes()))})
#: A node adds marks and notices to what it lets a stream have.
_STREAM_MARGIN_BYTES = _MIB


class LinkService:
    """A ControlLink over this process's store, blobs and logs. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        claims: SqlClaims,
        nodes: SqlNodes,
        script_disks: ScriptDisks,
        images: Images,
        blobs: Blobs,
        changes: Changes,
        logs: JobLogs,
        secrets: SecretService,
        flows: FlowService,
        usage: SqlUsageSeries,
        on_renewal_failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_renewal_failed` is called when leases could not be renewed although their node asked for it."""
        self._settings = settings
        self._claims = claims
        self._nodes = nodes
        self._script_disks = script_disks
        self._images = images
        self._blobs = blobs
        self._changes = changes
        self._logs = logs
        self._secrets = secrets
        self._flows = flows
        self._usage = usage
        self._on_renewal_failed = on_renewal_failed
        self._max_stream_bytes = int(settings.max_output_mb * _MIB) + _STREAM_MARGIN_BYTES
        self.leases = HeldLeases(claims, settings.lease_seconds, self._open_log)

    def _open_log(self, job: Job) -> AttemptLog:
        return AttemptLog(self._logs, job, self._max_stream_bytes)

    # --- nodes ----------------------------------------------------------------------------------------------------

    async def register(self, node: NodeIdentity) -> tuple[LeaseKey, ...]:
        since = time.monotonic()
        jobs = await self._claims.adopt(node.name, node.incarnation, self._settings.lease_seconds)
        await self.leases.drop_earlier(node)
        leases = []
        for job in jobs:
            lease = LeaseKey(job.id, job.attempt, node)
            await self.leases.grant(lease, job, since)
            leases.append(lease)
        return tuple(leases)

    async def heartbeat(self, node: NodeIdentity, report: NodeReport) -> None:
        await self._nodes.heartbeat(Node.of_report(node.name, report))

    # --- images ---------------------------------------------------------------------------------------------------

    async def images(self) -> tuple[Manifest, ...]:
        return tuple(image.manifest for image in await asyncio.to_thread(self._images.list))

    async def image_part(self, sha256: str, target: Path) -> None:
        for image in await asyncio.to_thread(self._images.list):
            paths = (image.kernel, image.initramfs, image.root)
            for part, path in zip(image.manifest.parts, paths, strict=True):
                if part.sha256 == sha256:
                    await asyncio.to_thread(_copy, path, target)
                    return
        raise NotFound(f"no image here has a part sha256:{sha256[:64]}")

    # --- leases ---------------------------------------------------------------------------------------------------

    async def claim(self, node: NodeIdentity, request: ClaimRequest, wait_seconds: float) -> Assignment | None:
        deadline, expected = time.monotonic() + wait_seconds, False
        while True:
            since = time.monotonic()
            job = await self._claims.claim(
                node.name,
                incarnation=node.incarnation,
                vcpus=request.vcpus,
                memory_mb=request.memory_mb,
                disk_mb=request.disk_mb,
                largest=request.largest,
                images=request.images,
                lease_seconds=self._settings.lease_seconds,
                expected=expected,
            )
            if job is not None:
                lease = LeaseKey(job.id, job.attempt, node)
                try:
                    await self.leases.grant(lease, job, since)
                except asyncio.CancelledError:
                    await self._claims.put_back(node.name, job, incarnation=node.incarnation)
                    raise
                _count_claim(job, time.monotonic() - since)
                return Assignment(lease=lease, job=job, lease_seconds=self._settings.lease_seconds)
            await asyncio.sleep(min(self._claims.searches.seconds(node.name) / _SEARCH_SHARE, _LOOK_SECONDS))
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                return None
            expected = await self._changes.wait_queued(min(_LOOK_SECONDS, left_seconds))

    async def renew(self, node: NodeIdentity, leases: Collection[LeaseKey]) -> Renewal:
        keys = {(lease.job_id, lease.attempt): lease for lease in leases if lease.node == node}
        since = time.monotonic()
        try:
            renewed = await self._claims.renew(
                node.name, keys, self._settings.lease_seconds, incarnation=node.incarnation
            )
        except BaseException:
            self._on_renewal_failed()
            raise
        lost = {lease for lease in leases if lease.node != node} | {keys[attempt] for attempt in renewed.lost}
        for lease in keys.values():
            if lease in lost:
                await self.leases.lose(lease)
            else:
                self.leases.extend(lease, since)
        await self.leases.drop_stale()
        return Renewal(
            lost=frozenset(lost),
            cancelled=frozenset(keys[attempt] for attempt in renewed.cancel_requested),
            lease_seconds=self._settings.lease_seconds,
        )

    async def wait_for_cancellation(self, node: NodeIdentity, wait_seconds: float) -> frozenset[LeaseKey]:
        await self._changes.wait_cancelled(wait_seconds)
        attempts = await self._claims.cancel_requested(node.name, incarnation=node.incarnation)
        return frozenset(LeaseKey(job_id, attempt, node) for job_id, attempt in attempts)

    # --- what an attempt needs ------------------------------------------------------------------------------------

    async def script_disk(self, lease: LeaseKey) -> Path:
        attempt = await self.leases.get(lease)
        return await self._script_disks.path(attempt.job.script_id)

    async def stdin(self, lease: LeaseKey) -> bytes:
        attempt = await self.leases.get(lease)
        return await self._blobs.get_bytes(stdin_blob(lease.job_id)) if attempt.job.stdin_bytes else b""

    async def secrets(self, lease: LeaseKey) -> tuple[JobSecret, ...]:
        attempt = await self.leases.get(lease)
        job = attempt.job
        if not job.secrets:
            return ()
        opened = await self._secrets.open(job.project, job.secrets)
        versions = {secret.name: secret.version for secret in opened}
        # The fence is checked after they were read: whoever lost the lease meanwhile gets none.
        if not await self._claims.note_secrets(lease.node.name, job, versions, incarnation=lease.node.incarnation):
            await self.leases.lose(lease)
            raise LeaseLost
        return opened

    # --- what an attempt reports ----------------------------------------------------------------------------------

    async def started(self, lease: LeaseKey, report: StartReport) -> None:
        attempt = await self.leases.get(lease)
        written = await self._claims.running(
            lease.node.name,
            attempt.job,
            started_at=report.started_at,
            machine=report.machine,
            timings=report.timings,
            incarnation=lease.node.incarnation,
        )
        if not written:
            await self.leases.lose(lease)
            raise LeaseLost
        self._changes.notify(lease.job_id)

    async def append_output(self, lease: LeaseKey, pieces: Sequence[OutputPiece]) -> OutputOffsets:
        attempt = await self.leases.get(lease)
        return await attempt.log.append(pieces)

    async def put_usage(self, lease: LeaseKey, series: UsageSeries) -> None:
        await self.leases.get(lease)
        if not await self._usage.put_of_job(lease, series):
            await self.leases.lose(lease)
            raise LeaseLost

    async def put_artifact(self, lease: LeaseKey, number: int, file: Path) -> None:
        attempt = await self.leases.get(lease)
        self._check_artifact(attempt, number, file)
        await self._blobs.put_file(artifact_blob(lease.job_id, number), file)
        increment("belljar_artifact_bytes", attempt.artifact_bytes[number])

    async def report_flows(self, lease: LeaseKey, report: FlowReport) -> None:
        await self.leases.get(lease)
        await self._flows.keep_of_job(lease, report)

    def _check_artifact(self, attempt: HeldAttempt, number: int, file: Path) -> None:
        """Raise InvalidRequest, TooLarge for more than a job may keep, HostError."""
        if not 0 <= number < self._settings.max_artifact_count:
            limit = self._settings.max_artifact_count
            raise InvalidRequest(f"a job keeps at most {limit} artifacts (the setting max_artifact_count)")
        try:
            size_bytes = {**attempt.artifact_bytes, number: file.stat().st_size}
        except OSError as error:
            raise host_error(error, "read an artifact") from error
        if sum(size_bytes.values()) > self._settings.max_artifacts_mb * _MIB:
            limit_mb = self._settings.max_artifacts_mb
            raise TooLarge(f"the artifacts of a job have at most {limit_mb:g} MiB (the setting max_artifacts_mb)")
        attempt.artifact_bytes = size_bytes

    # --- the end of an attempt ------------------------------------------------------------------------------------

    async def finish(self, lease: LeaseKey, outcome: Outcome) -> None:
        name, incarnation = lease.node.name, lease.node.incarnation
        try:
            attempt = await self.leases.get(lease)
        except LeaseLost:
            if await self._claims.ended_by(name, (lease.job_id, lease.attempt), incarnation=incarnation):
                return
            raise
        # The log is uploaded before the end is visible. One that is not open here is left to a sweep: nothing waits.
        was_open = await attempt.log.close()
        if was_open:
            await self._logs.keep(lease.job_id, is_first=lease.attempt == 1)
        if not await self._claims.finish(name, attempt.job, outcome, incarnation=incarnation):
            await self.leases.lose(lease)
            if not await self._claims.ended_by(name, (lease.job_id, lease.attempt), incarnation=incarnation):
                raise LeaseLost
            return
        await self.leases.lose(lease)
        if not was_open:
            self._logs.request_sweep()
        increment("belljar_attempts", outcome=outcome.status)
        if outcome.error is not None:  # a node may say anything
            increment("belljar_job_errors", code=outcome.error.code if outcome.error.code in _CODES else "other")
        self._changes.notify(lease.job_id)

    async def decline(self, lease: LeaseKey) -> None:
        attempt = await self.leases.get(lease)
        await self.leases.lose(lease)  # first: the next lease of the job may have the same number
        await self._claims.put_back(lease.node.name, attempt.job, incarnation=lease.node.incarnation)
        self._changes.notify_queued()

    async def requeue(self, lease: LeaseKey, *, code: str, reason: str) -> Status:
        attempt = await self.leases.get(lease)
        was_open = await attempt.log.close()
        after = await self._claims.requeue(
            lease.node.name, attempt.job, code=code, reason=reason, incarnation=lease.node.incarnation
        )
        await self.leases.lose(lease)
        if after is None:
            raise LeaseLost
        increment("belljar_attempts", outcome="lost")
        self._logs.note_lost(after)
        if was_open:  # the next attempt continues it, whichever process serves that
            await self._logs.keep(lease.job_id)
        else:
            self._logs.request_sweep()
        self._changes.notify(lease.job_id)
        self._changes.notify_queued()
        return after.status


def _count_claim(job: Job, seconds: float) -> None:
    increment("belljar_claims", kind="job")
    observe("belljar_claim_seconds", seconds)
    now = datetime.now(UTC)
    if job.attempt == 1:
        observe("belljar_queue_seconds", max(0.0, (now - job.created_at).total_seconds()))
    if job.traceparent is not None:
        queued_until = now - timedelta(seconds=seconds)
        if job.attempt == 1:
            tracing.record("queue", job.created_at, queued_until, parent=job.traceparent, belljar_job=job.id)
        tracing.record("claim", queued_until, now, parent=job.traceparent, belljar_job=job.id)


def _copy(source: Path, target: Path) -> None:
    """Copy a file under another name and rename it: the target is whole or not there. Raises DiskFull, HostError."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.copyfile(source, partial)
        os.link(partial, target)
    except OSError as error:
        raise host_error(error, "copy a part of an image") from error
    finally:
        partial.unlink(missing_ok=True)
