"""What every link promises about leases: a node that lost one writes and reads nothing under it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from belljar.link.errors import LeaseLost
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.model.states import Status
from support.control_plane import ControlPlane
from support.job_queue import ended
from support.link_calls import NODE, OTHER, claim_next, piece, start


async def test_renewing_tells_lost_and_cancelled_leases_apart(link: ControlLink, control: ControlPlane) -> None:
    leases = []
    for _ in range(3):
        await control.submit()
        leases.append((await claim_next(link)).lease)
    kept, lost, cancelled = leases
    await link.requeue(lost, code="x", reason="y")
    await control.cancel(cancelled.job_id)
    foreign = LeaseKey(kept.job_id, 1, OTHER)
    renewal = await link.renew(NODE, [*leases, foreign])
    assert renewal.lost == {lost, foreign}
    assert renewal.cancelled == {cancelled}
    assert renewal.lease_seconds == control.settings.lease_seconds


async def test_a_node_hears_at_once_that_a_job_is_cancelled(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    waiting = asyncio.create_task(link.wait_for_cancellation(NODE, 30))
    await asyncio.sleep(0.05)
    await control.cancel(held.job_id)
    async with asyncio.timeout(5):
        assert await waiting == {held}
    assert await link.wait_for_cancellation(OTHER, 0.01) == frozenset()


VERBS: dict[str, Callable[[ControlLink, LeaseKey, Path], Awaitable[object]]] = {
    "script_disk": lambda link, lease, file: link.script_disk(lease),
    "stdin": lambda link, lease, file: link.stdin(lease),
    "started": lambda link, lease, file: start(link, lease),
    "open_output": lambda link, lease, file: link.append_output(lease, ()),
    "append_output": lambda link, lease, file: link.append_output(lease, [piece(0, b"stale")]),
    "put_artifact": lambda link, lease, file: link.put_artifact(lease, 0, file),
    "finish": lambda link, lease, file: link.finish(lease, ended(Status.FAILED)),
    "decline": lambda link, lease, file: link.decline(lease),
    "requeue": lambda link, lease, file: link.requeue(lease, code="x", reason="y"),
}


async def test_a_job_that_is_declined_is_queued_again_and_the_attempt_does_not_count(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    await link.decline(held)
    job = await control.get(held.job_id)
    assert (job.status, job.attempt, job.lost_attempts) == (Status.QUEUED, 0, ())
    with pytest.raises(LeaseLost):
        await link.append_output(held, [piece(0, b"stale")])
    again = (await claim_next(link)).lease
    await link.append_output(again, [piece(0, b"x")])
    assert await control.output(held.job_id) == b"x"


async def lost_to_the_next_attempt(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    await link.requeue(lease, code="x", reason="y")
    return (await claim_next(link, OTHER)).lease


async def lost_to_the_next_attempt_of_the_same_node(
    link: ControlLink, control: ControlPlane, lease: LeaseKey
) -> LeaseKey:
    await link.requeue(lease, code="x", reason="y")
    return (await claim_next(link)).lease


async def lost_to_the_next_process_of_the_node(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    (adopted,) = await link.register(NodeIdentity(NODE.name, "second"))
    return adopted


async def lost_to_time(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    await control.claims.renew(NODE.name, [(lease.job_id, lease.attempt)], -1, incarnation=NODE.incarnation)
    control.queue._rescuer._not_before = 0
    assert [job.id for job in await control.queue._rescuer.rescue()] == [lease.job_id]
    return (await claim_next(link, OTHER)).lease


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "lose",
    [
        lost_to_the_next_attempt,
        lost_to_the_next_attempt_of_the_same_node,
        lost_to_the_next_process_of_the_node,
        lost_to_time,
    ],
)
async def test_a_lost_lease_writes_and_reads_nothing(
    link: ControlLink,
    control: ControlPlane,
    held: LeaseKey,
    tmp_path: Path,
    verb: str,
    lose: Callable[[ControlLink, ControlPlane, LeaseKey], Awaitable[LeaseKey]],
) -> None:
    (tmp_path / "file").write_bytes(b"stale")
    await link.append_output(held, [piece(0, b"old")])
    current = await lose(link, control, held)
    before = await control.get(held.job_id)
    with pytest.raises(LeaseLost):
        await VERBS[verb](link, held, tmp_path / "file")
    assert await control.get(held.job_id) == before
    assert b"stale" not in await control.output(held.job_id)
    assert await control.artifact(held.job_id, 0) is None
    # The lease that took its place still does all of it.
    await VERBS[verb](link, current, tmp_path / "file")


async def test_a_lease_that_was_never_given_is_lost(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    for forged in (
        LeaseKey(held.job_id, 2, NODE),
        LeaseKey(held.job_id, 1, OTHER),
        LeaseKey(held.job_id, 1, NodeIdentity(NODE.name, "x")),
        LeaseKey("job_00000000000000000000000000", 1, NODE),
    ):
        with pytest.raises(LeaseLost):
            await link.append_output(forged, [piece(0, b"x")])
    await link.append_output(held, [piece(0, b"y")])
    assert await control.output(held.job_id) == b"y"
