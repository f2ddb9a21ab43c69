"""The queue of one data folder, opened: the link for nodes, and the services that keep it in order."""

from __future__ import annotations

import asyncio

from belljar.control.blobs.store import Blobs
from belljar.control.flows.service import FlowService
from belljar.control.jobs.changes import Changes
from belljar.control.logs.job_logs import JobLogs, UploadTimes
from belljar.control.queue.link_service import LinkService
from belljar.control.queue.rescuer import JobRescuer, MissingImageService
from belljar.control.quotas.meter import UsageMeter
from belljar.control.scripts.disks import ScriptDisks
from belljar.control.secrets.service import SecretService
from belljar.control.store.claims import SqlClaims
from belljar.control.store.nodes import SqlNodes
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.catalog import Images
from belljar.settings import Settings
from belljar.system.background import supervise

_MAX_PAUSE_SECONDS = 10.0


class Queue:
    """The link of this process, and its services: `run` them beside it, with or without a node here.

    Several processes may run them over one database: what one has repaired, another finds repaired.
    """

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
        secrets: SecretService,
        flows: FlowService,
        usage: SqlUsageSeries,
        times: UploadTimes | None = None,
    ) -> None:
        self._claims = claims
        self._logs = JobLogs(settings.data_dir, blobs, times or UploadTimes(), changes)
        self._rescuer = JobRescuer(claims, changes, settings.lease_seconds, self._on_expired)
        self._missing_images = MissingImageService(claims, nodes, changes, settings.lease_seconds)
        self._meter = UsageMeter(claims)
        self.link = LinkService(
            settings=settings,
            claims=claims,
            nodes=nodes,
            script_disks=script_disks,
            images=images,
            blobs=blobs,
            changes=changes,
            logs=self._logs,
            secrets=secrets,
            flows=flows,
            usage=usage,
            on_renewal_failed=self._rescuer.postpone,
        )

    async def run(self) -> None:
        """Run the services until cancelled. What fails is logged and tried again."""
        async with asyncio.TaskGroup() as group:
            for name, work in (
                ("rescue_jobs", self._rescuer.run),
                ("fail_jobs_without_image", self._missing_images.run),
                ("upload_logs", self._upload_logs),
                ("meter_usage", self._meter.run),
            ):
                group.create_task(supervise(name, work, max_pause_seconds=_MAX_PAUSE_SECONDS), name=name)

    async def _upload_logs(self) -> None:
        await self._logs.run(self._claims)

    async def _on_expired(self, job_id: str) -> None:
        await self.link.leases.drop(job_id)
