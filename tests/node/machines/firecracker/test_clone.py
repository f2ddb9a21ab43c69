"""Snapshots and clones of the Firecracker driver, over the fake."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from belljar.images.catalog import Images
from belljar.model.errors import HostError, MachineDied, MachineError
from belljar.model.ids import new_id
from belljar.model.image import Image
from belljar.node.frozen.store import FrozenStore
from belljar.node.frozen.stored_parts import StoredParts
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, Clone, DeathCause
from belljar.settings import Settings
from support.conversation import hang_up
from support.firecracker.api_requests import opened, requests_of, run, spec_of
from support.firecracker.building import build_fakes
from support.firecracker.leftovers import left_behind

pytestmark = [pytest.mark.vm, pytest.mark.root]

RESUME_SECONDS = 30


async def freeze(hypervisor: FirecrackerHypervisor, image: Image, folder: Path, **shape: object) -> None:
    """Boot, suspend and freeze a machine into `folder`."""
    async with hypervisor.snapshot_source(spec_of(image, frozen=True, **shape), folder) as source:
        connection = await opened(source)
        await connection.suspend()
        await source.freeze()


async def resumed(clone: Clone) -> AgentConnection:
    connection = AgentConnection(clone.reader, clone.writer)
    await connection.resume(RESUME_SECONDS)
    return connection


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def frozen(
    built_images: Path, fakes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Path]:
    """A snapshot that the tests of this file share, and none of them changes."""
    data_dir = tmp_path_factory.mktemp("frozen")
    (data_dir / "images").symlink_to(built_images / "images")
    firecracker, jailer = fakes
    settings = Settings(data_dir=data_dir, firecracker=str(firecracker), jailer=str(jailer))
    folder = data_dir / "snapshot"
    await freeze(FirecrackerHypervisor(settings), Images(data_dir).get("shell"), folder)
    assert left_behind(settings) == []
    before = _digests(folder)
    yield folder
    assert _digests(folder) == before


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


async def test_a_clone_continues_from_the_snapshot_with_one_request(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path, settings: Settings
) -> None:
    async with hypervisor.clone(spec_of(shell, frozen=True), frozen) as clone:
        connection = await resumed(clone)
        await clone.attach_script(shell.root)
        assert requests_of(settings.data_dir) == ["PUT /snapshot/load"]
        assert "bin" in (await run(connection, "ls /job")).split()
        hang_up(connection)
        assert (await asyncio.wait_for(clone.death(), 30)).cause is DeathCause.GUEST_EXIT
    assert set(clone.phases) == {"prepare", "spawn", "socket", "load", "connect"}


async def test_clones_of_one_snapshot_do_not_see_each_other(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path
) -> None:
    spec = spec_of(shell, frozen=True)
    async with hypervisor.clone(spec, frozen) as one, hypervisor.clone(spec, frozen) as other:
        sessions = [await resumed(one), await resumed(other)]
        for clone in (one, other):
            await clone.attach_script(shell.root)
        script = "echo $$ $(hostname) > /work/mine; cat /work/mine /proc/sys/kernel/random/uuid"
        printed = await asyncio.gather(*(run(connection, script) for connection in sessions))
        assert printed[0].split()[1] != printed[1].split()[1]  # each has a name of its own
        assert printed[0].split()[2] != printed[1].split()[2]  # and randomness of its own


async def test_a_shorter_script_over_a_longer_one_leaves_nothing_of_it(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path, settings: Settings, tmp_path: Path
) -> None:
    long, short = tmp_path / "long", tmp_path / "short"
    long.write_bytes(b"L" * (3 << 20))
    short.write_bytes(b"S" * 5000)
    async with hypervisor.clone(spec_of(shell, frozen=True), frozen) as clone:
        await clone.attach_script(long)
        await clone.attach_script(short)
        (disk,) = settings.data_dir.glob("run/jails/*/*/root/script.img")
        with disk.open("rb") as file:
            assert file.read(3 << 20) == b"S" * 5000 + bytes((3 << 20) - 5000)
        assert disk.stat().st_size == SCRIPT_DISK_BYTES


async def test_a_script_over_the_disks_size_is_refused(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(SCRIPT_DISK_BYTES + 1)
    async with hypervisor.clone(spec_of(shell, frozen=True), frozen) as clone:
        with pytest.raises(HostError, match="make the script smaller"):
            await clone.attach_script(large)


async def test_a_scratch_disk_is_frozen_and_each_clone_has_its_own(
    hypervisor: FirecrackerHypervisor, shell: Image, tmp_path: Path
) -> None:
    folder = tmp_path / "snapshot"
    await freeze(hypervisor, shell, folder, disk_mb=200)
    scratch = hashlib.sha256((folder / "scratch.img").read_bytes()).digest()
    async with hypervisor.clone(spec_of(shell, frozen=True, disk_mb=200), folder) as clone:
        connection = await resumed(clone)
        await clone.attach_script(shell.root)
        script = "dd if=/dev/zero of=/tmp/x bs=1M count=150 2>/dev/null && stat -c %s /tmp/x"
        assert (await run(connection, script)).strip() == str(150 << 20)
    assert hashlib.sha256((folder / "scratch.img").read_bytes()).digest() == scratch


async def test_a_snapshot_that_is_not_whole_is_an_error_that_says_what_to_do(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path, tmp_path: Path
) -> None:
    for name in ("state", "memory"):
        (tmp_path / name).write_bytes(b"no snapshot")
    with pytest.raises(MachineError, match="not whole"):
        async with hypervisor.clone(spec_of(shell, frozen=True), tmp_path):
            pass
    (tmp_path / "frozen.json").write_text((frozen / "frozen.json").read_text())
    with pytest.raises(MachineError, match="refused PUT /snapshot/load"):
        async with hypervisor.clone(spec_of(shell, frozen=True), tmp_path):
            pass


async def test_a_process_that_dies_under_a_request_is_a_machine_that_died(
    settings: Settings, shell: Image, frozen: Path, tmp_path: Path
) -> None:
    firecracker, jailer = build_fakes(tmp_path / "faulty", die_on="/snapshot/load")
    faulty = FirecrackerHypervisor(settings.model_copy(update={"firecracker": str(firecracker), "jailer": str(jailer)}))
    with pytest.raises(MachineDied, match="during PUT /snapshot/load"):
        async with faulty.clone(spec_of(shell, frozen=True), frozen):
            pass
    assert left_behind(settings) == []


async def test_a_machine_is_frozen_and_restored_more_than_once(
    hypervisor: FirecrackerHypervisor, shell: Image, frozen: Path, tmp_path: Path
) -> None:
    store, spec = FrozenStore(tmp_path / "frozen"), spec_of(shell, frozen=True)
    async with hypervisor.clone(spec, frozen) as clone:
        connection = await resumed(clone)
        await connection.suspend()
        async with clone.frozen() as sources:
            manifest = await asyncio.to_thread(store.write, "mine", new_id("snap"), {}, sources)
    for _ in range(2):
        async with hypervisor.restored(spec, StoredParts(store, "mine", manifest, True)) as restored:
            connection = await resumed(restored)
            await restored.attach_script(shell.root)
            assert "bin" in (await run(connection, "ls /job")).split()
