"""What every link promises about an attempt's script, input, artifacts and end, and about nodes."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.catalog import Images
from belljar.link.errors import LeaseLost
from belljar.link.interface import ControlLink
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.link.nodes import NodeReport
from belljar.model.errors import BelljarError, NotFound
from belljar.model.image import Manifest, Part
from belljar.model.states import Status
from support.control_plane import ControlPlane
from support.job_queue import MACHINE, ended
from support.link_calls import NODE, OTHER, ROOM, STDOUT, claim_next, piece, start
from support.usage import usage_of


async def test_script_and_input_are_those_of_the_job(link: ControlLink, control: ControlPlane) -> None:
    await control.submit(script=b"first", stdin=b"\0\1")
    await control.submit(script=b"second")
    first, second = (await claim_next(link)).lease, (await claim_next(link)).lease
    assert (await link.script_disk(first)).read_bytes() == b"first"
    assert (await link.script_disk(second)).read_bytes() == b"second"
    assert await link.stdin(first) == b"\0\1"
    assert await link.stdin(second) == b""


async def test_a_script_that_was_deleted_is_not_found(link: ControlLink, control: ControlPlane, held: LeaseKey) -> None:
    await control.blobs.delete_prefixes(["scripts"])
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


async def test_the_newest_usage_is_kept_under_its_lease_only(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    usage = SqlUsageSeries(control.database)
    assert await usage.get(held.job_id) is None
    for seconds in ((1.0,), (1.0, 2.0)):
        await link.put_usage(held, usage_of(*seconds))
    stored = await usage.get(held.job_id)
    assert stored is not None and (stored.number, stored.series) == (1, usage_of(1.0, 2.0))
    with pytest.raises(LeaseLost):
        await link.put_usage(replace(held, node=OTHER), usage_of(9.0))
    await link.requeue(held, code="x", reason="x")
    with pytest.raises(LeaseLost):
        await link.put_usage(held, usage_of(9.0))
    again = (await claim_next(link)).lease
    await link.put_usage(again, usage_of(3.0))
    stored = await usage.get(held.job_id)
    assert stored is not None and (stored.number, stored.series.seconds) == (2, (3.0,))
    await link.finish(again, ended(Status.FAILED))
    with pytest.raises(LeaseLost):
        await link.put_usage(again, usage_of(9.0))


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
    first = await claim_next(link)
    assert await link.requeue(first.lease, code="machine_died", reason="it died") is Status.QUEUED
    second = await claim_next(link, OTHER)
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
    others = await claim_next(link, OTHER)
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


async def test_images_are_listed_and_their_parts_copied(
    link: ControlLink, control: ControlPlane, tmp_path: Path
) -> None:
    images = Images(control.settings.data_dir)
    parts = []
    images.blobs.folder.mkdir(parents=True, exist_ok=True)
    for text in (b"kernel", b"initramfs", b"root"):
        digest = hashlib.sha256(text).hexdigest()
        (images.blobs.folder / digest).write_bytes(text)
        parts.append(Part(sha256=digest, size_bytes=len(text), origin="a test"))
    kernel, initramfs, root = parts
    manifest = Manifest(
        name="small",
        architecture="x86_64",
        digest="d" * 64,
        kernel=kernel,
        initramfs=initramfs,
        root=root,
        languages=(),
    )
    images.register(manifest)
    assert await link.images() == (manifest,)
    await link.image_part(initramfs.sha256, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == b"initramfs"
    with pytest.raises(NotFound):
        await link.image_part("e" * 64, tmp_path / "none")
    with pytest.raises(BelljarError):
        await link.image_part(root.sha256, tmp_path / "no folder" / "part")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["part"]


async def test_the_log_of_an_inherited_job_is_uploaded_soon(
    link: ControlLink, control: ControlPlane, held: LeaseKey
) -> None:
    """The node's last process was killed: the new one neither opens the log nor waits for its upload."""
    await link.append_output(held, [piece(0, b"text")])
    services = asyncio.create_task(control.queue.run())
    try:
        await asyncio.sleep(0.1)  # the sweep at the start has passed
        (inherited,) = await link.register(NodeIdentity(NODE.name, "second"))
        await link.finish(inherited, ended(Status.FAILED, exit_code=1))
        async with asyncio.timeout(10):
            while list((control.settings.data_dir / "run" / "logs").iterdir()):
                await asyncio.sleep(0.02)
    finally:
        services.cancel()
        await asyncio.gather(services, return_exceptions=True)
    assert await control.output(held.job_id) == b"text"
