"""When services run: at intervals, in one process at a time, and not stopped by failures of others."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from belljar.model.errors import HostError
from belljar.model.states import Status
from belljar.system.maintenance import MaintenanceResult, ServiceRecord
from support.data_folder import Folder


async def test_a_server_removes_expired_jobs_and_logs_it(folder: Folder) -> None:
    maintenance = folder.maintenance(maintenance_interval_seconds=0.05, keep_stdin_days=0)
    with capture_logs() as logs:

        def logged() -> list[tuple[int, int]]:
            entries = [entry for entry in logs if entry["event"] == "expired_removed" and entry["kind"] == "jobs"]
            return [(entry["count"], entry["bytes"]) for entry in entries]

        running = asyncio.create_task(maintenance.run())
        async with asyncio.timeout(30):
            for number in (1, 2):
                await folder.end(Status.SUCCEEDED, 400)
                while len(logged()) < number:
                    await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert logged() == [(1, 29), (1, 29)]
    assert folder.sql("SELECT count(*) FROM jobs") == [(0,)]


async def test_what_ran_a_while_ago_is_due_again_and_what_failed_at_once(folder: Folder) -> None:
    maintenance = folder.maintenance()

    async def due() -> set[str]:
        return {outcome.service async for outcome in maintenance.run_once(due_only=True)}

    every = {service.name for service in maintenance.services}
    often = {service.name for service in maintenance.services if service.interval_seconds == 0}
    assert often == {"projects", "jobs", "stdin", "sandboxes"}
    assert await due() == every
    assert await due() == often
    folder.sql("UPDATE maintenance SET error = 'x' WHERE service = 'nodes'")
    assert await due() == {*often, "nodes"}
    folder.sql("UPDATE maintenance SET last_success_at = last_success_at - 3700000000")
    assert await due() == {service.name for service in maintenance.services if service.interval_seconds <= 3600}
    folder.sql("UPDATE maintenance SET last_success_at = last_success_at + 86400000000")  # the clock went back
    assert await due() == every


async def test_a_second_process_waits_for_the_lock_until_its_deadline(folder: Folder) -> None:
    first, second = folder.maintenance(), folder.maintenance()
    async with first.exclusive(0):
        with pytest.raises(HostError, match="try again later"):
            async with second.exclusive(0.1):
                pass
    async with second.exclusive(0):
        pass


async def test_a_bug_in_one_service_is_recorded_and_the_others_run(folder: Folder) -> None:
    class Broken:
        name, interval_seconds = "jobs", 0.0

        async def run(self, record: ServiceRecord, *, dry_run: bool) -> MaintenanceResult:
            raise ZeroDivisionError("a bug")

    maintenance = folder.maintenance()
    maintenance.services = (Broken(), *(each for each in maintenance.services if each.name != "jobs"))
    outcomes = {each.service: each async for each in maintenance.run_once()}
    assert isinstance(outcomes["jobs"].error, HostError)
    assert all(outcome.error is None for name, outcome in outcomes.items() if name != "jobs")
    assert folder.sql("SELECT failures FROM maintenance WHERE service = 'jobs'") == [(1,)]
