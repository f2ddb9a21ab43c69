"""The series of a machine's usage goes with its job or sandbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from belljar.control.store.project_removal import SqlProjectRemoval
from belljar.control.store.retention import SqlRetention
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.control.store.schema import usage_series
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.link.errors import LeaseLost
from belljar.model.sandbox import EndReason, SandboxEnd
from belljar.model.states import Status
from support.control_plane import ControlPlane, opened_control_plane
from support.job_queue import ended
from support.link_calls import NODE, OTHER, ROOM, claim_next
from support.usage import usage_of


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with opened_control_plane(tmp_path / "data", lease_seconds=30) as control:
        yield control


async def owners(control: ControlPlane) -> list[str]:
    query = select(usage_series.c.owner)
    return await control.database.reading(lambda connection: list(connection.execute(query).scalars()))


async def ended_job(control: ControlPlane) -> str:
    job = await control.submit()
    lease = (await claim_next(control.queue.link)).lease
    await control.queue.link.put_usage(lease, usage_of(1.0, 2.0))
    await control.queue.link.finish(lease, ended(Status.FAILED))
    return job.id


async def test_it_goes_with_its_job(control: ControlPlane) -> None:
    job_id = await ended_job(control)
    assert await owners(control) == [job_id]
    await SqlRetention(control.database).remove_ended(Status.FAILED, datetime.now(UTC) + timedelta(days=1), 10)
    assert await owners(control) == []


async def test_it_goes_with_its_project(control: ControlPlane) -> None:
    await ended_job(control)
    await SqlProjectRemoval(control.database).remove_jobs("mine", 10)
    assert await owners(control) == []


async def test_that_of_a_sandbox_is_written_under_its_lease_and_goes_with_it(control: ControlPlane) -> None:
    link, usage = control.sandboxes.link, SqlUsageSeries(control.database)
    sandbox = await control.create_sandbox()
    assignment = await link.claim_sandbox(NODE, ROOM, 0)
    assert assignment is not None
    await link.put_sandbox_usage(assignment.lease, usage_of(1.0))
    for wrong in (replace(assignment.lease, fence=7), replace(assignment.lease, node=OTHER)):
        with pytest.raises(LeaseLost):
            await link.put_sandbox_usage(wrong, usage_of(2.0))
    await link.sandbox_ended(assignment.lease, SandboxEnd(reason=EndReason.DELETED, message="it was deleted"))
    with pytest.raises(LeaseLost):
        await link.put_sandbox_usage(assignment.lease, usage_of(2.0))
    stored = await usage.get(sandbox.id)
    assert stored is not None and stored.series == usage_of(1.0)
    assert await SqlSandboxes(control.database).remove_ended(0, 10) == 1
    assert await owners(control) == []


async def test_a_full_series_is_a_few_kilobytes(control: ControlPlane) -> None:
    await control.submit()
    lease = (await claim_next(control.queue.link)).lease
    numbers = tuple((value * 7919) % 100_003 * 4096 for value in range(256))
    series = usage_of(*(float(value) for value in range(1, 257))).model_copy(
        update={
            "memory_bytes": numbers,
            "disk_bytes": numbers[::-1],
            "cpu": tuple(value % 97 / 97 for value in numbers),
        }
    )
    await control.queue.link.put_usage(lease, series)
    query = select(usage_series.c.data)
    data = await control.database.reading(lambda connection: connection.execute(query).scalar_one())
    assert len(data) < 8 * 1024
