"""What every link promises about claims: order, room, waiting, and that each job is given once."""

from __future__ import annotations

import asyncio

import pytest

from belljar.link.interface import ControlLink
from belljar.link.leases import ClaimRequest, LeaseKey
from belljar.model.job import Resources
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from support.control_plane import ControlPlane
from support.link_calls import NODE, OTHER, ROOM, claim_next


async def test_jobs_are_given_by_priority_and_then_by_age(link: ControlLink, control: ControlPlane) -> None:
    jobs = [await control.submit(priority=priority) for priority in (0, 5, 0, 5)]
    claimed = [(await claim_next(link)).job.id for _ in jobs]
    assert claimed == [jobs[number].id for number in (1, 3, 0, 2)]
    assert await link.claim(NODE, ROOM, 0) is None


async def test_an_assignment_holds_the_job_as_it_was_submitted(link: ControlLink, control: ControlPlane) -> None:
    job = await control.submit(args=("a", "b"), env={"X": "1"})
    assignment = await claim_next(link)
    assert assignment.lease == LeaseKey(job.id, 1, NODE)
    assert assignment.lease_seconds == control.settings.lease_seconds
    changed = {"status": Status.STARTING, "attempt": 1, "worker": "n1"}
    assert assignment.job == job.model_copy(update=changed)


@pytest.mark.parametrize(
    "request_",
    [
        ClaimRequest(vcpus=1, memory_mb=8192),
        ClaimRequest(vcpus=8, memory_mb=256),
        ClaimRequest(vcpus=8, memory_mb=8192, disk_mb=10),
        ClaimRequest(vcpus=8, memory_mb=8192, images=frozenset({"b" * 64})),
        ClaimRequest(vcpus=8, memory_mb=8192, largest=NodeLimits(vcpus=1, memory_mb=8192)),
    ],
)
async def test_a_node_is_given_no_job_that_it_has_no_room_for(
    link: ControlLink, control: ControlPlane, request_: ClaimRequest
) -> None:
    await control.submit(resources=Resources(vcpus=2, memory_mb=512, disk_mb=100), image_digest="a" * 64)
    assert await link.claim(NODE, request_, 0) is None
    assert (await claim_next(link)).job.image_digest == "a" * 64


async def test_a_job_is_given_once(link: ControlLink, control: ControlPlane) -> None:
    jobs = [await control.submit() for _ in range(5)]
    claims = await asyncio.gather(*(link.claim(node, ROOM, 0) for node in (NODE, OTHER) for _ in range(5)))
    given_ids = [claim.job.id for claim in claims if claim is not None]
    assert sorted(given_ids) == sorted(job.id for job in jobs)


async def test_a_claim_waits_for_a_job(link: ControlLink, control: ControlPlane) -> None:
    waiting = asyncio.create_task(link.claim(NODE, ROOM, 30))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    job = await control.submit()
    async with asyncio.timeout(5):
        assignment = await waiting
    assert assignment is not None and assignment.job.id == job.id


async def test_a_claim_that_is_cancelled_loses_no_job(link: ControlLink, control: ControlPlane) -> None:
    job = await control.submit()
    for delay_seconds in (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008):
        claiming = asyncio.create_task(link.claim(NODE, ROOM, 5))
        await asyncio.sleep(delay_seconds)
        if not claiming.cancel():
            break
        await asyncio.wait({claiming})
        if not claiming.cancelled():
            break
    else:
        assert (await control.get(job.id)).status is Status.QUEUED
        claiming = asyncio.create_task(link.claim(NODE, ROOM, 5))
    assignment = await claiming
    assert assignment is not None and assignment.lease == LeaseKey(job.id, 1, NODE)
