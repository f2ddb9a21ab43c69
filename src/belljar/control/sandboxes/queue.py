"""The sandboxes of one data folder, opened: the store, the link for nodes, and what ends those that are overdue."""

from __future__ import annotations

import asyncio

from belljar.control.flows.service import FlowService
from belljar.control.quotas.meter import UsageMeter
from belljar.control.sandboxes.changes import SandboxChanges
from belljar.control.sandboxes.expiry import WAIT_SECONDS, SandboxExpiry
from belljar.control.sandboxes.link_service import SandboxLinkService
from belljar.control.sandboxes.machines import SandboxMachines
from belljar.control.secrets.service import SecretService
from belljar.control.store.clock import DatabaseClock
from belljar.control.store.database import Database
from belljar.control.store.sandbox_claims import SqlSandboxClaims
from belljar.control.store.sandbox_pauses import SqlSandboxPauses
from belljar.control.store.sandbox_snapshots import SqlSandboxSnapshots
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.system.background import supervise

_MAX_PAUSE_SECONDS = 10.0


class SandboxQueue:
    """Everything about sandboxes that callers, nodes and maintenance share in one process."""

    def __init__(
        self, database: Database, secrets: SecretService, lease_seconds: float, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.store = SqlSandboxes(database)
        self.changes = SandboxChanges()
        #: Whether a worker runs in this process: only its sandboxes can be reached from here.
        self.has_node = True
        #: The machines that this process can reach.
        self.machines = SandboxMachines()
        self.pauses = SqlSandboxPauses(database)
        self.snapshots = SqlSandboxSnapshots(database)
        claims = SqlSandboxClaims(database)
        flows = FlowService.over(database)
        self.usage = SqlUsageSeries(database)
        self.link = SandboxLinkService(
            claims, self.pauses, secrets, self.changes, self.machines, flows, self.usage, lease_seconds
        )
        self._meter = UsageMeter(claims)
        self.expiry = SandboxExpiry(
            claims, DatabaseClock(database), lease_seconds, self.link.note_changed, wait_seconds
        )

    async def run(self) -> None:
        """End what is overdue, and meter what runs, until cancelled. What fails is logged and tried again."""
        async with asyncio.TaskGroup() as group:
            for name, work in (("sandbox_expiry", self.expiry.run), ("meter_sandboxes", self._meter.run)):
                group.create_task(supervise(name, work, max_pause_seconds=_MAX_PAUSE_SECONDS), name=name)
