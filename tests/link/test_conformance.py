"""What every implementation of the link promises to a node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.link.errors import LeaseLost, OutputGap, OutputRefused
from belljar.link.interface import ControlLink
from belljar.link.leases import Assignment, ClaimRequest, LeaseKey, NodeIdentity, StartReport
from belljar.link.nodes import NodeReport
from belljar.link.output import MAX_PIECE_BYTES, OutputPiece
from belljar.model.errors import BelljarError, NotFound
from belljar.model.job import Job, Timings
from belljar.model.log_stream import LogStream
from belljar.model.resources import NodeLimits
from belljar.model.states import Status
from support.control_plane import ControlPlane
from support.job_queue import MACHINE, ended

NODE, OTHER = NodeIdentity("n1", "first"), NodeIdentity("n2", "first")
ROOM = ClaimRequest(vcpus=8, memory_mb=8192)
STDOUT, STDERR = LogStream.STDOUT, LogStream.STDERR


def piece(offset: int, data: bytes, stream: LogStream = STDOUT) -> OutputPiece:
    return OutputPiece(stream, offset, data)


async def given(link: ControlLink, node: NodeIdentity = NODE) -> Assignment:
    """Claim the next job, which is there."""
    assignment = await link.claim(node, ROOM, 0)
    assert assignment is not None
    return assignment


async def start(link: ControlLink, lease: LeaseKey) -> None:
    await link.started(lease, StartReport(started_at=datetime.now(UTC), machine=MACHINE, timings=Timings()))


@pytest.fixture
async def held(link: ControlLink, control: ControlPlane) -> LeaseKey:
    """The lease of a job that NODE holds."""
    await control.submit(stdin=b"input", max_attempts=3)
    return (await given(link)).lease


# --- claims -----------------------------------------------------------------------------------------------------------


async def test_jobs_are_given_by_priority_and_then_by_age(link: ControlLink, control: ControlPlane) -> None:
    jobs = [await control.submit(priority=priority) for priority in (0, 5, 0, 5)]
    claimed = [(await given(link)).job.id for _ in jobs]
    assert claimed == [jobs[number].id for number in (1, 3, 0, 2)]
    assert await link.claim(NODE, ROOM, 0) is None


async def test_an_assignment_holds_the_job_as_it_was_submitted(link: ControlLink, control: ControlPlane) -> None:
    job = await control.submit(args=("a", "b"), env={"X": "1"})
    assignment = await given(link)
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
    resources = Job.model_fields["resources"].annotation
    assert resources is not None
    await control.submit(resources=resources(vcpus=2, memory_mb=512, disk_mb=100), image_digest="a" * 64)
    assert await link.claim(NODE, request_, 0) is None
    assert (await given(link)).job.image_digest == "a" * 64


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


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_renewing_tells_lost_and_cancelled_leases_apart(link: ControlLink, control: ControlPlane) -> None:
    leases = []
    for _ in range(3):
        await control.submit()
        leases.append((await given(link)).lease)
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
    "requeue": lambda link, lease, file: link.requeue(lease, code="x", reason="y"),
}


async def lost_to_the_next_attempt(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    await link.requeue(lease, code="x", reason="y")
    return (await given(link, OTHER)).lease


async def lost_to_the_next_attempt_of_the_same_node(
    link: ControlLink, control: ControlPlane, lease: LeaseKey
) -> LeaseKey:
    await link.requeue(lease, code="x", reason="y")
    return (await given(link)).lease


async def lost_to_the_next_process_of_the_node(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    (adopted,) = await link.register(NodeIdentity(NODE.name, "second"))
    return adopted


async def lost_to_time(link: ControlLink, control: ControlPlane, lease: LeaseKey) -> LeaseKey:
    await control.claims.renew(NODE.name, [(lease.job_id, lease.attempt)], -1, incarnation=NODE.incarnation)
    control.queue._rescuer._not_before = 0
    assert [job.id for job in await control.queue._rescuer.rescue()] == [lease.job_id]
    return (await given(link, OTHER)).lease


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


# --- output -----------------------------------------------------------------------------------------------------------


async def test_output_is_acknowledged_by_offset_and_then_visible(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    assert await link.append_output(held, ()) == {}
    assert await link.append_output(held, [piece(0, b"one "), piece(0, b"oh", STDERR), piece(4, b"two")]) == {
        STDOUT: 7,
        STDERR: 2,
    }
    assert await control.output(held.job_id) == b"one two"
    assert await control.output(held.job_id, STDERR) == b"oh"
    assert await link.append_output(held, [piece(7, b" three")]) == {STDOUT: 13, STDERR: 2}
    assert await control.output(held.job_id) == b"one two three"


async def test_output_wakes_those_who_follow_the_log(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    with control.changes.watching(held.job_id) as watch:
        await link.append_output(held, [piece(0, b"text")])
        assert await watch.wait(5)


async def test_output_that_is_sent_again_is_kept_once(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    for _ in range(2):
        assert await link.append_output(held, [piece(0, b"abc"), piece(3, b"def")]) == {STDOUT: 6}
    assert await link.append_output(held, [piece(2, b"cdefgh")]) == {STDOUT: 8}
    assert await control.output(held.job_id) == b"abcdefgh"


async def test_a_gap_in_the_output_is_refused(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await link.append_output(held, [piece(0, b"abc")])
    with pytest.raises(OutputGap) as refused:
        await link.append_output(held, [piece(4, b"e")])
    assert refused.value.details["acknowledged"] == 3
    assert await control.output(held.job_id) == b"abc"


async def test_each_attempt_counts_its_own_output(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await link.append_output(held, [piece(0, b"first")])
    await link.requeue(held, code="x", reason="its node died")
    again = (await given(link)).lease
    assert await link.append_output(again, ()) == {}
    assert await link.append_output(again, [piece(0, b"second")]) == {STDOUT: 6}
    assert await control.output(held.job_id, attempt=1) == b"first"
    assert await control.output(held.job_id, attempt=2) == b"second"
    assert b"attempt 1 was lost: its node died" in await control.output(held.job_id, LogStream.CONSOLE)


async def test_a_stream_of_output_has_a_bound(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    with pytest.raises(OutputRefused):
        for number in range(5):
            await link.append_output(held, [piece(number * MAX_PIECE_BYTES, b"x" * MAX_PIECE_BYTES)])
    assert len(await control.output(held.job_id)) <= 2 * MAX_PIECE_BYTES


async def test_a_piece_of_output_has_a_bound(link: ControlLink, held: LeaseKey) -> None:
    for wrong in (piece(0, b"x" * (MAX_PIECE_BYTES + 1)), piece(-1, b"x")):
        with pytest.raises(BelljarError):
            await link.append_output(held, [wrong])


async def test_output_is_whole_when_the_end_is_visible(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    await start(link, held)
    await link.append_output(held, [piece(0, b"all")])
    await link.finish(held, ended(Status.FAILED))
    assert await control.output(held.job_id) == b"all"
    assert list((control.settings.data_dir / "run" / "logs").iterdir()) == []


# --- script, input, artifacts -----------------------------------------------------------------------------------------


async def test_script_and_input_are_those_of_the_job(link: ControlLink, control: ControlPlane) -> None:
    await control.submit(script=b"first", stdin=b"\0\1")
    await control.submit(script=b"second")
    first, second = (await given(link)).lease, (await given(link)).lease
    assert (await link.script_disk(first)).read_bytes() == b"first"
    assert (await link.script_disk(second)).read_bytes() == b"second"
    assert await link.stdin(first) == b"\0\1"
    assert await link.stdin(second) == b""


async def test_a_script_that_was_deleted_is_not_found(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await control.blobs.delete_prefix("scripts")
    with pytest.raises(NotFound):
        await link.script_disk(held)


async def test_artifacts_are_kept_by_number(
    link: ControlLink, control: ControlPlane, held: LeaseKey, tmp_path: Path
) -> None:
    for number, data in enumerate((b"one", b"")):
        (tmp_path / "file").write_bytes(data)
        await link.put_artifact(held, number, tmp_path / "file")
    (tmp_path / "file").write_bytes(b"changed afterwards")
    assert await control.artifact(held.job_id, 0) == b"one"
    assert await control.artifact(held.job_id, 1) == b""


async def test_an_artifact_is_kept_whole_or_not_at_all(
    link: ControlLink, control: ControlPlane, held: LeaseKey, tmp_path: Path
) -> None:
    with pytest.raises(BelljarError):
        await link.put_artifact(held, 0, tmp_path / "none")
    assert await control.artifact(held.job_id, 0) is None


async def test_artifacts_have_bounds(link: ControlLink, control: ControlPlane, held: LeaseKey, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 700_000)
    await link.put_artifact(held, 0, file)
    for number in (1, 3, -1):
        with pytest.raises(BelljarError):
            await link.put_artifact(held, number, file)
        assert number < 0 or await control.artifact(held.job_id, number) is None
    await link.put_artifact(held, 0, file)


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_a_start_is_visible(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await start(link, held)
    await start(link, held)
    job = await control.get(held.job_id)
    assert (job.status, job.machine) == (Status.RUNNING, MACHINE)


async def test_a_job_ends_once(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await start(link, held)
    with control.changes.watching(held.job_id, of_log=False) as watch:
        await link.finish(held, ended(Status.SUCCEEDED, exit_code=0))
        assert await watch.wait(5)
    after = await control.get(held.job_id)
    assert (after.status, after.exit_code, after.worker) == (Status.SUCCEEDED, 0, NODE.name)
    await link.finish(held, ended(Status.FAILED, exit_code=1))
    assert await control.get(held.job_id) == after
    with pytest.raises(LeaseLost):
        await link.requeue(held, code="x", reason="y")
    assert await control.get(held.job_id) == after


async def test_a_requeued_job_is_given_again_until_it_had_its_attempts(
    link: ControlLink, control: ControlPlane
) -> None:
    await control.submit(max_attempts=2)
    first = await given(link)
    assert await link.requeue(first.lease, code="machine_died", reason="it died") is Status.QUEUED
    second = await given(link, OTHER)
    assert (second.lease.attempt, second.job.id) == (2, first.job.id)
    assert await link.requeue(second.lease, code="machine_died", reason="it died again") is Status.LOST
    job = await control.get(first.job.id)
    assert [(lost.attempt, lost.code, lost.worker) for lost in job.lost_attempts] == [
        (1, "machine_died", "n1"),
        (2, "machine_died", "n2"),
    ]


async def test_requeueing_wakes_a_claim_that_waits(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    waiting = asyncio.create_task(link.claim(OTHER, ROOM, 30))
    await asyncio.sleep(0.05)
    await link.requeue(held, code="x", reason="y")
    async with asyncio.timeout(5):
        assignment = await waiting
    assert assignment is not None and assignment.lease == LeaseKey(held.job_id, 2, OTHER)


# --- nodes ------------------------------------------------------------------------------------------------------------


async def test_a_heartbeat_lists_the_node(link: ControlLink, control: ControlPlane) -> None:
    report = NodeReport(
        hostname="host",
        version="1",
        started_at=datetime.now(UTC),
        vcpus=4,
        memory_mb=4096,
        largest_memory_mb=4000,
        vcpus_free=4,
        memory_free_mb=4000,
        running_jobs=0,
        images=("a" * 64,),
    )
    await link.heartbeat(NODE, report)
    await link.heartbeat(NODE, report.model_copy(update={"running_jobs": 2}))
    (node,) = await control.nodes.list()
    assert (node.id, node.hostname, node.running_jobs, node.images) == ("n1", "host", 2, ("a" * 64,))
    assert node.public(30)["alive"]


async def test_a_process_of_a_node_inherits_what_the_last_one_held(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    await control.submit()
    others = await given(link, OTHER)
    again = NodeIdentity(NODE.name, "second")
    (inherited,) = await link.register(again)
    assert inherited == LeaseKey(held.job_id, 1, again)
    assert (await link.renew(OTHER, [others.lease])).lost == frozenset()
    await start(link, inherited)
    await link.finish(inherited, ended(Status.SUCCEEDED))
    assert (await control.get(held.job_id)).status is Status.SUCCEEDED
    assert await link.register(again) == ()


async def test_output_goes_on_where_an_earlier_link_was_acknowledged(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    """The control plane was started again meanwhile: what it has acknowledged is in the log."""
    await link.append_output(held, [piece(0, b"abc")])
    await control.queue.link.leases.drop(held.job_id)
    assert await link.append_output(held, ()) == {STDOUT: 3}
    assert await link.append_output(held, [piece(1, b"bcd")]) == {STDOUT: 4}
    assert await control.output(held.job_id) == b"abcd"
