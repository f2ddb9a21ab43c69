"""What every link promises about sandboxes: each has one holder, ends once, and hears what is wanted of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from belljar.control.store.projects import SqlProjects
from belljar.link.errors import LeaseLost
from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import SandboxLease, SandboxLink
from belljar.model.errors import SecretMissing
from belljar.model.ids import new_id
from belljar.model.sandbox import EndReason, FrozenState, ResumeProblem, SandboxStatus
from belljar.model.sandbox_errors import SandboxEnded, SandboxNotReady, SandboxPaused, SandboxUnreachable
from belljar.model.sandbox_snapshot import SandboxSnapshot
from belljar.model.secrets import SecretUse, SecretValue
from support.control_plane import ControlPlane
from support.link_calls import NODE, OTHER
from support.sandboxes import ROOM, claim_sandbox, end_by, run_sandbox

AGAIN = NodeIdentity(NODE.name, "second")
DELETED = end_by(EndReason.DELETED)


async def test_a_sandbox_is_given_to_one_node(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox(env={"A": "1"}, labels={"team": "x"}, lifetime_seconds=100)
    assignment = await claim_sandbox(sandboxes, NODE)
    assert await sandboxes.claim_sandbox(OTHER, ROOM, 0) is None
    assert assignment.lease == SandboxLease(created.id, 1, NODE)
    assert assignment.sandbox.spec == created.spec
    assert 90 < assignment.order.lifetime_seconds <= 100 and assignment.order.end is None
    assert assignment.lease_seconds == control.settings.lease_seconds
    claimed = await control.sandbox(created.id)
    assert (claimed.status, claimed.node, claimed.fence) == (SandboxStatus.CREATING, NODE.name, 1)


async def test_a_node_gets_only_what_it_has_room_and_the_image_for(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    large = await control.create_sandbox(memory_mb=512, image_digest="a")
    small = await control.create_sandbox(memory_mb=128, image_digest="b")
    room = ClaimRequest(vcpus=1, memory_mb=256, images=frozenset({"a", "b"}))
    first = await sandboxes.claim_sandbox(NODE, room, 0)
    assert first is not None and first.sandbox.id == small.id
    assert await sandboxes.claim_sandbox(NODE, replace(room, memory_mb=512, images=frozenset({"b"})), 0) is None
    second = await sandboxes.claim_sandbox(NODE, replace(room, memory_mb=512), 0)
    assert second is not None and second.sandbox.id == large.id


async def test_projects_get_nodes_in_turn(sandboxes: SandboxLink, control: ControlPlane) -> None:
    for project in ("greedy", "greedy", "greedy", "modest"):
        await control.create_sandbox(project=project)
    order = [(await claim_sandbox(sandboxes, NODE)).sandbox.project for _ in range(4)]
    assert order == ["greedy", "modest", "greedy", "greedy"]


async def test_a_waiting_claim_gets_a_new_sandbox_at_once(sandboxes: SandboxLink, control: ControlPlane) -> None:
    waiting = asyncio.create_task(sandboxes.claim_sandbox(NODE, ROOM, 60))
    await asyncio.sleep(0.05)
    created = await control.create_sandbox()
    async with asyncio.timeout(10):
        assignment = await waiting
    assert assignment is not None and assignment.sandbox.id == created.id


async def test_a_cancelled_claim_loses_no_sandbox(sandboxes: SandboxLink, control: ControlPlane) -> None:
    for _ in range(20):
        created = await control.create_sandbox()
        claiming = asyncio.create_task(sandboxes.claim_sandbox(NODE, ROOM, 0))
        await asyncio.sleep(0)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)
        assignment = claiming.result() if not claiming.cancelled() else await claim_sandbox(sandboxes, OTHER)
        assert assignment is not None and assignment.sandbox.id == created.id
        await sandboxes.sandbox_ended(assignment.lease, DELETED)


async def test_a_declined_sandbox_waits_for_another_node(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox()
    first = await claim_sandbox(sandboxes, NODE)
    await sandboxes.decline_sandbox(first.lease)
    second = await claim_sandbox(sandboxes, OTHER)
    assert (second.sandbox.id, second.lease.fence) == (created.id, 2)
    with pytest.raises(LeaseLost):
        await run_sandbox(sandboxes, first.lease)


async def test_its_machine_is_reached_while_it_runs(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created, machines = await control.create_sandbox(), control.sandboxes.machines
    with pytest.raises(SandboxNotReady):
        machines.get(created)
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    machine = object()
    await run_sandbox(sandboxes, lease, machine)
    await run_sandbox(sandboxes, lease, machine)  # again, as after an answer that was lost
    running = await control.sandbox(created.id)
    assert running.status is SandboxStatus.RUNNING and running.started_at is not None and running.machine is not None
    assert running.timings.queue_ms is not None and running.timings.machine_ms == 1.0
    assert machines.get(running) is machine
    await sandboxes.sandbox_ended(lease, DELETED)
    with pytest.raises(SandboxEnded, match="a test ended it"):
        machines.get(await control.sandbox(created.id))
    with pytest.raises(SandboxUnreachable):
        machines.get(running)  # what was read before its end


async def test_it_ends_once_and_a_second_report_has_no_effect(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox()
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    await sandboxes.sandbox_ended(lease, DELETED)
    await sandboxes.sandbox_ended(lease, end_by(EndReason.MACHINE_DIED))
    ended = await control.sandbox(created.id)
    assert (ended.status, ended.end) == (SandboxStatus.ENDED, DELETED) and ended.ended_at is not None
    assert await sandboxes.claim_sandbox(NODE, ROOM, 0) is None


@pytest.mark.parametrize(
    ("reason", "status"),
    [(EndReason.MACHINE_DIED, SandboxStatus.LOST), (EndReason.IDLE, SandboxStatus.ENDED)],
)
async def test_the_reason_decides_whether_it_ended_or_was_lost(
    sandboxes: SandboxLink, control: ControlPlane, reason: EndReason, status: SandboxStatus
) -> None:
    created = await control.create_sandbox()
    await sandboxes.sandbox_ended((await claim_sandbox(sandboxes, NODE)).lease, end_by(reason))
    assert (await control.sandbox(created.id)).status is status


async def test_renewals_tell_lost_leases_and_orders(sandboxes: SandboxLink, control: ControlPlane) -> None:
    leases = []
    for _ in range(3):
        await control.create_sandbox()
        leases.append((await claim_sandbox(sandboxes, NODE)).lease)
    kept, lost, ended = leases
    await sandboxes.decline_sandbox(lost)
    await control.sandboxes.store.request_end(None, ended.sandbox_id, EndReason.DELETED, "it was deleted")
    foreign = replace(kept, node=OTHER)
    renewal = await sandboxes.renew_sandboxes(NODE, [*leases, foreign])
    assert renewal.lost == {lost, foreign}
    assert {lease: order.end for lease, order in renewal.orders.items()} == {kept: None, ended: EndReason.DELETED}


async def test_a_node_hears_of_an_end_and_of_a_longer_lifetime_at_once(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    created = await control.create_sandbox(lifetime_seconds=10)
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    store, changes = control.sandboxes.store, control.sandboxes.changes
    first = (await sandboxes.wait_for_orders(NODE, 0))[lease]

    async def received_after(change: Awaitable[object]) -> dict[SandboxLease, Any]:
        waiting = asyncio.create_task(sandboxes.wait_for_orders(NODE, 60))
        await asyncio.sleep(0.05)
        await change
        changes.orders.notify()
        async with asyncio.timeout(10):
            return await waiting

    longer = (await received_after(store.extend("mine", created.id, 100)))[lease]
    assert longer.expires_at > first.expires_at and 90 < longer.lifetime_seconds <= 100
    ended = await received_after(store.request_end("mine", created.id, EndReason.DELETED, "it was deleted"))
    assert ended[lease].end is EndReason.DELETED
    assert (await control.sandbox(created.id)).status is SandboxStatus.CREATING  # its node ends it
    assert await sandboxes.wait_for_orders(OTHER, 0) == {}


async def test_a_sandbox_that_no_node_holds_is_ended_at_once(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox()
    ended = await control.sandboxes.store.request_end("mine", created.id, EndReason.DELETED, "it was deleted")
    assert ended is not None and ended.status is SandboxStatus.ENDED
    assert await sandboxes.claim_sandbox(NODE, ROOM, 0) is None


async def test_a_restarted_node_has_lost_what_ran_and_not_what_was_being_created(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    creating, running, deleted = [await control.create_sandbox() for _ in range(3)]
    leases = [(await claim_sandbox(sandboxes, NODE)).lease for _ in range(3)]
    await run_sandbox(sandboxes, leases[1])
    await run_sandbox(sandboxes, leases[2])
    await control.sandboxes.store.request_end(None, deleted.id, EndReason.DELETED, "it was deleted")
    assert await sandboxes.forget_sandboxes(NODE) == 0  # its own
    assert await sandboxes.forget_sandboxes(AGAIN) == 3
    lost = await control.sandbox(running.id)
    assert lost.status is SandboxStatus.LOST and lost.end is not None and lost.end.reason is EndReason.NODE_LOST
    gone = await control.sandbox(deleted.id)
    assert gone.status is SandboxStatus.ENDED and gone.end is not None and gone.end.reason is EndReason.DELETED
    assert (await claim_sandbox(sandboxes, AGAIN)).sandbox.id == creating.id


async def test_it_gets_its_secrets_and_their_versions_are_noted(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox(secrets=(SecretUse(name="TOKEN"),))
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    with pytest.raises(SecretMissing, match="TOKEN"):
        await sandboxes.sandbox_secrets(lease)
    await SqlProjects(control.database).create("mine")
    await control.secrets.set("mine", "TOKEN", SecretValue(b"value"))
    (secret,) = await sandboxes.sandbox_secrets(lease)
    assert (secret.name, secret.version, secret.value.reveal()) == ("TOKEN", 1, b"value")
    assert (await control.sandbox(created.id)).secret_versions == {"TOKEN": 1}


FROZEN = FrozenState(id=new_id("snap"), node=NODE.name, stored_bytes=1000)
PROBLEM = ResumeProblem(code="snapshot_unusable", message="it is damaged")


async def paused(sandboxes: SandboxLink, control: ControlPlane, frozen: FrozenState = FROZEN) -> SandboxLease:
    """A sandbox that was paused, and the lease under which it was."""
    await control.create_sandbox(lifetime_seconds=100)
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    await run_sandbox(sandboxes, lease)
    await sandboxes.sandbox_pausing(lease)
    await sandboxes.sandbox_paused(lease, frozen)
    return lease


async def test_it_is_paused_once_and_only_its_node_resumes_it(sandboxes: SandboxLink, control: ControlPlane) -> None:
    lease = await paused(sandboxes, control)
    await sandboxes.sandbox_paused(lease, FROZEN)  # again, as after an answer that was lost
    with pytest.raises(LeaseLost):
        await sandboxes.sandbox_paused(lease, replace_id(FROZEN))
    found = await control.sandbox(lease.sandbox_id)
    assert (found.status, found.frozen) == (SandboxStatus.PAUSED, FROZEN) and found.paused_at is not None
    with pytest.raises(SandboxPaused):
        control.sandboxes.machines.get(found)
    assert await sandboxes.claim_sandbox(NODE, ROOM, 0) is None
    resuming = await control.sandboxes.pauses.request_resume("mine", lease.sandbox_id)
    assert resuming is not None and resuming.status is SandboxStatus.RESUMING and resuming.paused_at is None
    assert resuming.expires_at >= found.expires_at
    assert await sandboxes.claim_sandbox(OTHER, ROOM, 0) is None
    again = await claim_sandbox(sandboxes, NODE)
    assert again.sandbox.frozen == FROZEN and again.lease.fence == 2
    await run_sandbox(sandboxes, again.lease)
    assert (await control.sandbox(lease.sandbox_id)).status is SandboxStatus.RUNNING
    with pytest.raises(LeaseLost):
        await sandboxes.sandbox_paused(lease, FROZEN)


async def test_a_pause_that_failed_runs_on(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox()
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    await run_sandbox(sandboxes, lease)
    before = await control.sandbox(created.id)
    await sandboxes.sandbox_pausing(lease)
    await sandboxes.sandbox_pausing(lease)
    assert (await control.sandbox(created.id)).status is SandboxStatus.PAUSING
    await run_sandbox(sandboxes, lease)
    assert await control.sandbox(created.id) == before
    with pytest.raises(LeaseLost):
        await sandboxes.sandbox_paused(lease, FROZEN)  # it runs


async def test_a_node_that_dies_loses_what_it_was_pausing_and_not_what_it_was_resuming(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    resuming = await paused(sandboxes, control)
    await control.sandboxes.pauses.request_resume("mine", resuming.sandbox_id)
    await claim_sandbox(sandboxes, NODE)
    pausing = []
    for _ in range(2):
        await control.create_sandbox()
        pausing.append((await claim_sandbox(sandboxes, NODE)).lease)
        await run_sandbox(sandboxes, pausing[-1])
        await sandboxes.sandbox_pausing(pausing[-1])
    kept = replace_id(FROZEN)
    await sandboxes.sandbox_paused(pausing[1], kept)  # the next process found that all was kept, and says so first
    assert await sandboxes.forget_sandboxes(AGAIN) == 2
    statuses = [(await control.sandbox(lease.sandbox_id)).status for lease in (resuming, *pausing)]
    assert statuses == [SandboxStatus.PAUSED, SandboxStatus.LOST, SandboxStatus.PAUSED]
    assert (await control.sandbox(resuming.sandbox_id)).problem is not None


async def test_one_that_could_not_be_resumed_is_paused_with_the_reason(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    lease = await paused(sandboxes, control)
    await control.sandboxes.pauses.request_resume("mine", lease.sandbox_id)
    again = (await claim_sandbox(sandboxes, NODE)).lease
    await sandboxes.sandbox_not_resumed(again, PROBLEM)
    found = await control.sandbox(lease.sandbox_id)
    assert (found.status, found.problem, found.frozen) == (SandboxStatus.PAUSED, PROBLEM, FROZEN)
    assert found.paused_at is not None
    with pytest.raises(LeaseLost):
        await sandboxes.sandbox_not_resumed(again, PROBLEM)


async def test_one_that_is_to_end_is_not_paused(sandboxes: SandboxLink, control: ControlPlane) -> None:
    created = await control.create_sandbox()
    lease = (await claim_sandbox(sandboxes, NODE)).lease
    await run_sandbox(sandboxes, lease)
    await sandboxes.sandbox_pausing(lease)
    await control.sandboxes.store.request_end("mine", created.id, EndReason.DELETED, "it was deleted")
    await sandboxes.sandbox_paused(lease, FROZEN)
    ended = await control.sandbox(created.id)
    assert ended.end is not None and ended.end.reason is EndReason.DELETED


async def test_frozen_machines_are_needed_by_sandboxes_and_by_snapshots(
    sandboxes: SandboxLink, control: ControlPlane
) -> None:
    lease, snapshot, gone = await paused(sandboxes, control), new_id("snap"), new_id("snap")
    spec = (await control.sandbox(lease.sandbox_id)).spec
    await control.sandboxes.snapshots.insert(
        SandboxSnapshot(
            id=snapshot,
            project="mine",
            sandbox_id=lease.sandbox_id,
            node=NODE.name,
            created_at=datetime.now(UTC),
            stored_bytes=1,
            spec=spec,
        ),
        lambda count: None,
    )
    assert await sandboxes.frozen_in_use(NODE, [FROZEN.id, snapshot, gone]) == {FROZEN.id, snapshot}
    await control.sandboxes.store.request_end("mine", lease.sandbox_id, EndReason.DELETED, "it was deleted")
    assert await sandboxes.frozen_in_use(NODE, [FROZEN.id, snapshot, gone]) == {snapshot}
    assert await control.sandboxes.snapshots.delete("mine", snapshot)
    assert await sandboxes.frozen_in_use(NODE, [FROZEN.id, snapshot, gone]) == frozenset()


def replace_id(frozen: FrozenState) -> FrozenState:
    return frozen.model_copy(update={"id": new_id("snap")})


VERBS: dict[str, Callable[[SandboxLink, SandboxLease], Awaitable[object]]] = {
    "secrets": lambda link, lease: link.sandbox_secrets(lease),
    "running": lambda link, lease: run_sandbox(link, lease),
    "ended": lambda link, lease: link.sandbox_ended(lease, DELETED),
    "pausing": lambda link, lease: link.sandbox_pausing(lease),
    "paused": lambda link, lease: link.sandbox_paused(lease, FROZEN),
    "not resumed": lambda link, lease: link.sandbox_not_resumed(lease, PROBLEM),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_lost_lease_reads_and_writes_nothing(sandboxes: SandboxLink, control: ControlPlane, verb: str) -> None:
    created = await control.create_sandbox(secrets=(SecretUse(name="TOKEN"),))
    await SqlProjects(control.database).create("mine")
    await control.secrets.set("mine", "TOKEN", SecretValue(b"value"))
    lost = (await claim_sandbox(sandboxes, NODE)).lease
    await sandboxes.decline_sandbox(lost)
    await claim_sandbox(sandboxes, OTHER)
    before = await control.sandbox(created.id)
    for lease in (lost, replace(lost, fence=2), replace(lost, fence=2, node=replace(OTHER, incarnation="other"))):
        with pytest.raises(LeaseLost):
            await VERBS[verb](sandboxes, lease)
    assert await control.sandbox(created.id) == before
