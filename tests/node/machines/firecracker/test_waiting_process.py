"""Firecracker processes whose API waits for a snapshot, over the fake: confined, taken over, replaced."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from belljar.images.catalog import Images
from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.protocol import BadSnapshot, MachineSpec
from belljar.settings import Settings
from support.firecracker.api_requests import opened, requests_of, run, spec_of
from support.firecracker.building import build_fakes
from support.firecracker.inhabitants import check_confinement, inhabitant
from support.firecracker.leftovers import left_behind

pytestmark = [pytest.mark.vm, pytest.mark.root]

SECONDS = 60


@pytest.fixture
def spec(shell: Image) -> MachineSpec:
    return spec_of(shell, frozen=True, disk_mb=64)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def frozen(
    built_images: Path, fakes: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Path]:
    data_dir = tmp_path_factory.mktemp("frozen")
    (data_dir / "images").symlink_to(built_images / "images")
    settings = Settings(data_dir=data_dir, firecracker=str(fakes[0]), jailer=str(fakes[1]))
    spec = spec_of(Images(data_dir).get("shell"), frozen=True, disk_mb=64)
    async with FirecrackerHypervisor(settings).snapshot_source(spec, data_dir / "snapshot") as source:
        await (await opened(source)).suspend()
        await source.freeze()
    yield data_dir / "snapshot"


def only_process(settings: Settings) -> int:
    (root,) = settings.data_dir.glob("run/jails/*/*/root")
    return int(inhabitant(root).name)


async def test_a_waiting_process_is_confined_and_becomes_a_clone_by_one_request(
    hypervisor: FirecrackerHypervisor, spec: MachineSpec, frozen: Path, settings: Settings
) -> None:
    async with asyncio.timeout(SECONDS), hypervisor.waiting_process(spec, frozen) as process:
        check_confinement(settings)
        pid = only_process(settings)
        assert requests_of(settings.data_dir) == []
        async with hypervisor.clone(spec, frozen, process) as clone:
            check_confinement(settings)
            assert only_process(settings) == pid and clone.id == process.id
            connection = AgentConnection(clone.reader, clone.writer)
            await connection.resume(SECONDS)
            await clone.attach_script(spec.image.root)
            assert "bin" in await run(connection, "ls /job")
            assert requests_of(settings.data_dir) == ["GET /", "PUT /snapshot/load"]
            assert list(clone.phases) == ["load", "connect"]
            assert not process.is_usable


@pytest.mark.parametrize("how", ["killed", "stopped", "hanging"])
async def test_a_fault_while_it_waits_is_seen_and_the_clone_has_another_process(
    hypervisor: FirecrackerHypervisor,
    spec: MachineSpec,
    frozen: Path,
    settings: Settings,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if how == "hanging":  # nothing in /proc tells that a process hangs: it is stopped, and /proc is not believed
        monkeypatch.setattr("belljar.node.machines.firecracker.clone.is_stopped", lambda pids: False)
    async with asyncio.timeout(SECONDS), hypervisor.waiting_process(spec, frozen) as process:
        pid = only_process(settings)
        os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        async with hypervisor.clone(spec, frozen, process) as clone:
            assert clone.id != process.id
            connection = AgentConnection(clone.reader, clone.writer)
            await connection.resume(SECONDS)
            assert not Path(f"/proc/{pid}").exists()


async def test_a_process_that_dies_under_the_request_is_replaced(
    hypervisor: FirecrackerHypervisor, spec: MachineSpec, frozen: Path, settings: Settings, tmp_path: Path
) -> None:
    firecracker, jailer = build_fakes(tmp_path / "faulty", die_on="/snapshot/load")
    faulty = FirecrackerHypervisor(settings.model_copy(update={"firecracker": str(firecracker), "jailer": str(jailer)}))
    async with (
        asyncio.timeout(SECONDS),
        faulty.waiting_process(spec, frozen) as process,
        hypervisor.clone(spec, frozen, process) as clone,
    ):
        assert clone.id != process.id
        await AgentConnection(clone.reader, clone.writer).resume(SECONDS)


async def test_a_snapshot_that_is_refused_is_not_tried_with_a_second_process(
    hypervisor: FirecrackerHypervisor, spec: MachineSpec, frozen: Path, settings: Settings, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in frozen.iterdir():
        (broken / path.name).write_bytes(path.read_bytes() if path.suffix == ".json" else b"no snapshot")
    async with asyncio.timeout(SECONDS), hypervisor.waiting_process(spec, broken) as process:
        with pytest.raises(BadSnapshot, match="refused PUT /snapshot/load"):
            async with hypervisor.clone(spec, broken, process):
                pass
    assert left_behind(settings) == []
