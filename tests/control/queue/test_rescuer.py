"""Jobs of silent nodes, and jobs whose image no node has: rescued with and without a worker here, never too early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from belljar.control.queue.rescuer import JobRescuer, MissingImageService
from belljar.link.leases import ClaimRequest, LeaseKey, NodeIdentity
from belljar.model.errors import HostError
from belljar.model.job import Job
from belljar.model.states import Status
from support.control_plane import ControlPlane, open_queue, opened_control_plane
from support.faults import Faults, Faulty

NODE = NodeIdentity("n1", "a")
LEASE_SECONDS = 1.1


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with opened_control_plane(tmp_path / "data", lease_seconds=LEASE_SECONDS) as control:
        yield control


async def held_job(control: ControlPlane) -> LeaseKey:
    await control.submit()
    assignment = await control.queue.link.claim(NODE, ClaimRequest(vcpus=8, memory_mb=8192), 0)
    assert assignment is not None
    return assignment.lease


async def until_status(control: ControlPlane, job_id: str, status: Status, seconds: float = 10) -> Job:
    async with asyncio.timeout(seconds):
        while (job := await control.get(job_id)).status is not status:
            await asyncio.sleep(0.02)
        return job


async def test_the_job_of_a_silent_node_is_queued_again_once(control: ControlPlane) -> None:
    """Two processes run the services, as a server and a worker beside it do."""
    lease = await held_job(control)
    second = open_queue(control.settings, control.database, control.blobs, control.changes)
    services = [asyncio.create_task(queue.run()) for queue in (control.queue, second)]
    try:
        with control.changes.watching(lease.job_id, of_log=False) as watch:
            assert await watch.wait(10)
        job = await until_status(control, lease.job_id, Status.QUEUED)
        assert [lost.code for lost in job.lost_attempts] == ["lease_expired"]
        await asyncio.sleep(LEASE_SECONDS)
        assert await control.get(lease.job_id) == job
    finally:
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)


async def test_a_node_that_renews_keeps_its_job(control: ControlPlane) -> None:
    lease = await held_job(control)
    services = asyncio.create_task(control.queue.run())
    try:
        end = time.monotonic() + 3 * LEASE_SECONDS
        while time.monotonic() < end:
            assert not (await control.queue.link.renew(NODE, [lease])).lost
            await asyncio.sleep(LEASE_SECONDS / 4)
    finally:
        services.cancel()
        await asyncio.gather(services, return_exceptions=True)
    assert (await control.get(lease.job_id)).attempt == 1


def rescuer_of(control: ControlPlane, claims: Any = None) -> JobRescuer:
    async def forget(job_id: str) -> None: ...

    rescuer = JobRescuer(claims or control.claims, control.changes, LEASE_SECONDS, forget)
    rescuer._not_before = 0
    return rescuer


async def test_leases_are_left_alone_after_they_could_not_be_renewed(control: ControlPlane) -> None:
    lease, rescuer = await held_job(control), rescuer_of(control)
    await control.claims.renew(NODE.name, [(lease.job_id, 1)], -1, incarnation=NODE.incarnation)
    rescuer.postpone()
    assert await rescuer.rescue() == []
    await asyncio.sleep(LEASE_SECONDS)
    assert [job.id for job in await rescuer.rescue()] == [lease.job_id]


async def test_a_link_that_cannot_renew_postpones_the_rescue(control: ControlPlane) -> None:
    faults = Faults()
    lease = await held_job(control)
    queue = control.queue
    queue.link._claims = Faulty(control.claims, "claims", faults)  # type: ignore[assignment]
    queue._rescuer._not_before = 0
    faults.refuse("claims.renew", times=1)
    with pytest.raises(HostError):
        await queue.link.renew(NODE, [lease])
    assert queue._rescuer._not_before > time.monotonic()


async def test_leases_are_left_alone_after_the_store_refused(control: ControlPlane) -> None:
    faults = Faults()
    lease, rescuer = await held_job(control), rescuer_of(control, Faulty(control.claims, "claims", faults))
    await control.claims.renew(NODE.name, [(lease.job_id, 1)], -1, incarnation=NODE.incarnation)
    faults.refuse("claims.expire", times=1)
    with pytest.raises(HostError):
        await rescuer.rescue()
    assert await rescuer.rescue() == []


async def test_a_process_that_stood_still_rescues_nothing_at_once(control: ControlPlane) -> None:
    lease, rescuer = await held_job(control), rescuer_of(control)
    running = asyncio.create_task(rescuer.run())
    try:
        await asyncio.sleep(0.05)
        time.sleep(2 * LEASE_SECONDS)  # as SIGSTOP does to the loop and all that renews in it
        await asyncio.sleep(LEASE_SECONDS / 6)
        assert (await control.get(lease.job_id)).status is Status.STARTING
        await until_status(control, lease.job_id, Status.QUEUED)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_job_whose_image_no_node_has_fails(control: ControlPlane) -> None:
    class Nodes:
        async def images(self, silent_after_seconds: float, missing_seconds: float) -> set[str]:
            return {"b" * 64}

    job = await control.submit(image_digest="a" * 64)
    nodes: Any = Nodes()
    service = MissingImageService(control.claims, nodes, control.changes, LEASE_SECONDS)
    running = asyncio.create_task(service.run())
    try:
        failed = await until_status(control, job.id, Status.FAILED)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert failed.error is not None and failed.error.code == "unknown_image"
