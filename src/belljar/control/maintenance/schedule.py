"""Runs the maintenance services: in a server at intervals, or once for `belljar gc`; one process at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from belljar.control.blobs.store import Blobs
from belljar.control.maintenance.files import (
    BackupCleaner,
    BuildCacheCleaner,
    ImageCleaner,
    LayerCleaner,
    SnapshotCleaner,
)
from belljar.control.maintenance.jobs import JobCleaner, StdinCleaner
from belljar.control.maintenance.leftovers import LeftoverCleaner, LogKeeper
from belljar.control.maintenance.orphans import OrphanCleaner
from belljar.control.maintenance.records import KeyCleaner, NodeCleaner
from belljar.control.maintenance.scripts import ScriptCleaner
from belljar.control.maintenance.service import Context, MaintenanceService, Result
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.maintenance import ServiceRun, SqlMaintenance
from belljar.control.store.retention import SqlRetention
from belljar.model.errors import BelljarError, HostError
from belljar.settings import Settings
from belljar.system.background import Backoff, note_failure
from belljar.system.file_locks import try_lock

log = structlog.get_logger()

#: A server that has just started has other things to do.
_FIRST_SECONDS = 5.0
_RETRY_SECONDS = 10.0
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one service did in one run."""

    service: str
    result: Result
    error: BelljarError | OSError | None = None


class Maintenance:
    """The services of one data folder."""

    def __init__(self, settings: Settings, database: Database, blobs: Blobs) -> None:
        self._settings = settings
        self._records = SqlMaintenance(database)
        self._retention = SqlRetention(database)
        self._blobs = blobs
        self.services: Sequence[MaintenanceService] = (
            JobCleaner(),
            StdinCleaner(),
            LogKeeper(),
            ScriptCleaner(),
            OrphanCleaner(),
            NodeCleaner(),
            KeyCleaner(),
            LeftoverCleaner(),
            SnapshotCleaner(),
            LayerCleaner(),
            BuildCacheCleaner(),
            ImageCleaner(SqlJobs(database)),
            BackupCleaner(),
        )

    async def run(self) -> None:
        """Run what is due at every interval, until cancelled. What fails is tried again sooner."""
        backoff = Backoff(_RETRY_SECONDS, self._settings.maintenance_interval_seconds)
        await asyncio.sleep(min(_FIRST_SECONDS, self._settings.maintenance_interval_seconds))
        while True:
            failed = False
            async with self._turn() as mine:
                if mine:
                    outcomes = [outcome async for outcome in self.run_once(due_only=True)]
                    failed = any(outcome.error is not None for outcome in outcomes)
            if not failed:
                backoff.reset()
            interval = self._settings.maintenance_interval_seconds
            pause = min(interval, backoff.next()) if failed else interval
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 (no secret)

    @asynccontextmanager
    async def alone(self, wait_seconds: float) -> AsyncIterator[None]:
        """Keep the maintenance of other processes off until the block ends.

        Raises HostError when another is at it for longer than `wait_seconds`.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            async with self._turn() as mine:
                if mine:
                    yield
                    return
            if asyncio.get_running_loop().time() > deadline:
                raise HostError(
                    f"the server has been removing things for over {wait_seconds:g} s; "
                    "its log and /metrics say how far it is; try again later"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def run_once(self, *, due_only: bool = False, dry_run: bool = False) -> AsyncIterator[Outcome]:
        """Run the services one after the other; a failure of one does not keep the others. For who has the turn."""
        context = Context(settings=self._settings, retention=self._retention, blobs=self._blobs, dry_run=dry_run)
        for service in self.services:
            outcome = await self._run_service(service, context, due_only)
            if outcome is not None:
                yield outcome

    async def _run_service(self, service: MaintenanceService, context: Context, due_only: bool) -> Outcome | None:
        try:
            known = (await self._records.runs()).get(service.name)
            if due_only and known is not None and not _is_due(service, known):
                return None
            if context.dry_run:
                return Outcome(service=service.name, result=await service.run(context, known or _new(service.name)))
            record = await self._records.begin(service.name)
            result = await service.run(context, record)
            await self._records.end(
                service.name,
                removed_count=result.removed.count,
                removed_bytes=result.removed.size_bytes,
                error=None,
                done_until=result.done_until,
            )
        except Exception as error:  # noqa: BLE001 (nothing that one service raises may keep the others from their work)
            return await self._failed(service.name, error, context)
        self._tell(service.name, result)
        return Outcome(service=service.name, result=result)

    async def _failed(self, name: str, error: Exception, context: Context) -> Outcome:
        note_failure(f"maintenance_{name}", error)
        known = error if isinstance(error, (BelljarError, OSError)) else HostError(f"{name}: belljar itself failed")
        if not context.dry_run:
            try:
                await self._records.end(name, removed_count=0, removed_bytes=0, error=str(known), done_until=None)
            except HostError as refused:
                log.error("maintenance_not_recorded", service=name, error=refused.message)
        return Outcome(service=name, result=Result(), error=known)

    def _tell(self, name: str, result: Result) -> None:
        for finding in result.findings:
            log.warning("maintenance_finding", service=name, finding=finding)
        if result.removed.count:
            log.info("expired_removed", kind=name, count=result.removed.count, bytes=result.removed.size_bytes)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[bool]:
        path = self._settings.paths.maintenance_lock
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(path) as mine:
            yield mine


def _is_due(service: MaintenanceService, record: ServiceRun) -> bool:
    """Whether it is time again. A service that failed, or that the clock has overtaken, is due."""
    if record.error is not None or record.last_success_at is None:
        return True
    age_seconds = (datetime.now(UTC) - record.last_success_at).total_seconds()
    return not 0 <= age_seconds < service.every_seconds


def _new(name: str) -> ServiceRun:
    now = datetime.now(UTC)
    return ServiceRun(
        service=name,
        first_run_at=now,
        last_run_at=now,
        last_success_at=None,
        removed_count=0,
        removed_bytes=0,
        failures=0,
        error=None,
        done_until=None,
    )
