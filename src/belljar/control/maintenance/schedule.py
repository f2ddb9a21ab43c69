"""Runs maintenance services: in a server at intervals, or once for `belljar gc`; in one process at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from belljar.control.store.database import Database
from belljar.control.store.maintenance import SqlMaintenance
from belljar.model.errors import BelljarError, HostError
from belljar.settings import Settings
from belljar.system.background import Backoff, report_failure
from belljar.system.file_locks import try_lock
from belljar.system.maintenance import MaintenanceResult, MaintenanceService, ServiceRecord

log = structlog.get_logger()

#: A server that has just started has other work to do.
_FIRST_SECONDS = 5.0
_RETRY_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceOutcome:
    """How one run of one service ended."""

    service: str
    result: MaintenanceResult
    error: BelljarError | OSError | None = None


class Maintenance:
    """The services of one data folder and their records in the database."""

    def __init__(self, settings: Settings, database: Database, services: Sequence[MaintenanceService]) -> None:
        self._settings = settings
        self._records = SqlMaintenance(database)
        self.services = services

    async def run(self) -> None:
        """Run the services that are due at every interval, until cancelled. Retry failed ones sooner."""
        backoff = Backoff(_RETRY_SECONDS, self._settings.maintenance_interval_seconds)
        await asyncio.sleep(min(_FIRST_SECONDS, self._settings.maintenance_interval_seconds))
        while True:
            failed = False
            with self._try_lock() as has_lock:
                if has_lock:
                    outcomes = [outcome async for outcome in self.run_once(due_only=True)]
                    failed = any(outcome.error is not None for outcome in outcomes)
            if not failed:
                backoff.reset()
            interval = self._settings.maintenance_interval_seconds
            pause = min(interval, backoff.next()) if failed else interval
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 (no secret)

    @asynccontextmanager
    async def exclusive(self, wait_seconds: float) -> AsyncIterator[None]:
        """Keep other processes from maintenance until the block ends.

        Raises HostError when another process holds the lock for longer than `wait_seconds`.
        """
        deadline = asyncio.get_running_loop().time() + wait_seconds
        while True:
            with self._try_lock() as has_lock:
                if has_lock:
                    yield
                    return
            if asyncio.get_running_loop().time() > deadline:
                raise HostError(
                    f"the server's maintenance has run for over {wait_seconds:g} s; "
                    "see its log and /metrics, and try again later"
                )
            await asyncio.sleep(_LOCK_POLL_SECONDS)

    async def run_once(self, *, due_only: bool = False, dry_run: bool = False) -> AsyncIterator[ServiceOutcome]:
        """Run the services in order; a failure of one does not stop the others. The caller holds the lock."""
        for service in self.services:
            outcome = await self._run_service(service, due_only, dry_run)
            if outcome is not None:
                yield outcome

    async def _run_service(self, service: MaintenanceService, due_only: bool, dry_run: bool) -> ServiceOutcome | None:
        name = service.name
        try:
            known = (await self._records.all()).get(name)
            if due_only and known is not None and not _is_due(service, known):
                return None
            if dry_run:
                result = await service.run(known or _first_record(name), dry_run=True)
                return ServiceOutcome(service=name, result=result)
            record = await self._records.begin(name)
            result = await service.run(record, dry_run=False)
            await self._records.end(
                name,
                removed_count=result.removed.count,
                removed_bytes=result.removed.size_bytes,
                error=None,
                done_until=result.done_until,
            )
        except Exception as error:  # noqa: BLE001 (a bug in one service must not stop the others)
            return await self._failed(name, error, dry_run)
        _log_result(name, result)
        return ServiceOutcome(service=name, result=result)

    async def _failed(self, name: str, error: Exception, dry_run: bool) -> ServiceOutcome:
        report_failure(f"maintenance_{name}", error)
        known = error if isinstance(error, (BelljarError, OSError)) else HostError(f"{name}: internal error")
        if not dry_run:
            try:
                await self._records.end(name, removed_count=0, removed_bytes=0, error=str(known), done_until=None)
            except HostError as store_error:
                log.error("maintenance_record_failed", service=name, error=store_error.message)
        return ServiceOutcome(service=name, result=MaintenanceResult(), error=known)

    @contextmanager
    def _try_lock(self) -> Iterator[bool]:
        path = self._settings.paths.maintenance_lock
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(path) as has_lock:
            yield has_lock


def _log_result(name: str, result: MaintenanceResult) -> None:
    for finding in result.findings:
        log.warning("maintenance_finding", service=name, finding=finding)
    if result.removed.count:
        log.info("expired_removed", kind=name, count=result.removed.count, bytes=result.removed.size_bytes)


def _is_due(service: MaintenanceService, record: ServiceRecord) -> bool:
    """Return whether the service is due: after its interval, after a failure, or when the clock was set back."""
    if record.error is not None or record.last_success_at is None:
        return True
    age_seconds = (datetime.now(UTC) - record.last_success_at).total_seconds()
    return not 0 <= age_seconds < service.interval_seconds


def _first_record(name: str) -> ServiceRecord:
    now = datetime.now(UTC)
    return ServiceRecord(
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
