"""Real QEMU processes that wait for a snapshot: confined like any machine's, taken over, replaced when they fail."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from belljar.images.catalog import Images
from belljar.model.errors import HostError, MachineError
from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.host.cgroup import PARENT, find_hierarchies
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.tap import enter_isolated_slot
from belljar.node.machines.protocol import Clone, MachineSpec, WaitingProcess
from belljar.node.machines.provision.warm_up import resume
from belljar.node.machines.qemu.clone import QemuClone
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from support.confinement import check_files, check_network, check_privileges
from support.firecracker.api_requests import opened, run, spec_of
from support.running import alive, descendants, name_of

pytestmark = pytest.mark.vm

SECONDS = 60


@pytest.fixture
def image(built_images: Path) -> Image:
    return Images(built_images).get("shell")


@pytest.fixture
def spec(image: Image) -> MachineSpec:
    return spec_of(image, frozen=True, disk_mb=64)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def frozen(built_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with a scratch disk."""
    place = tmp_path_factory.mktemp("frozen")
    (place / "snapshot").mkdir(mode=0o700)
    hypervisor = QemuHypervisor(Settings(data_dir=place), "tcg")
    spec = spec_of(Images(built_images).get("shell"), frozen=True, disk_mb=64)
    async with hypervisor.snapshot_source(spec, place / "snapshot") as source:
        await (await opened(source)).suspend()
        await source.freeze()
    return place / "snapshot"


@pytest.fixture
async def hypervisor(tmp_path: Path, frozen: Path, spec: MachineSpec) -> AsyncIterator[QemuHypervisor]:
    """The driver; no process, group, descriptor or file of a machine is left at the end."""
    hypervisor = QemuHypervisor(Settings(data_dir=tmp_path), "tcg")
    async with hypervisor.waiting_process(spec, frozen):
        pass  # what is opened once is open now
    before = len(os.listdir("/proc/self/fd"))
    yield hypervisor
    assert emulators() == []
    assert groups() == []
    assert len(os.listdir("/proc/self/fd")) <= before
    hypervisor.release_snapshot(frozen)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def emulators() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if alive(pid) and "qemu" in name_of(pid)]


def groups() -> list[Path]:
    mine = f"{owner_name(os.getpid())}.*"
    return [path for each in find_hierarchies() for path in (each.folder / PARENT).glob(mine)]


@asynccontextmanager
async def resumed(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path, process: WaitingProcess
) -> AsyncIterator[tuple[Clone, AgentConnection]]:
    async with asyncio.timeout(SECONDS), hypervisor.clone(spec, frozen, process) as clone:
        connection = await resume(clone, SECONDS, silence_seconds=0)
        await clone.attach_script(spec.image.root)
        yield clone, connection


async def test_a_waiting_process_is_confined_and_stays_so_when_it_becomes_a_clone(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path
) -> None:
    async with hypervisor.waiting_process(spec, frozen) as process:
        (pid,) = emulators()
        check_all(pid, process.id, spec.image)
        async with resumed(hypervisor, spec, frozen, process) as (clone, connection):
            assert emulators() == [pid] and clone.id == process.id
            check_all(pid, process.id, spec.image)
            assert list(clone.phases) == ["load", "resume"]
            script = "ls -d /job/bin && dd if=/dev/zero of=/tmp/x bs=1M count=8 2>/dev/null && stat -c %s /tmp/x"
            assert await run(connection, script) == f"/job/bin\n{8 << 20}\n"
            assert not process.is_usable  # it is nobody else's
        assert emulators() == []


def check_all(pid: int, machine_id: str, image: Image) -> None:
    check_privileges(pid)
    check_files(pid, image)
    check_network(pid)
    if os.geteuid() == 0 and find_hierarchies():
        assert machine_id in Path(f"/proc/{pid}/cgroup").read_text()
        weights = [group / name for group in groups() for name in ("cpu.shares", "cpu.weight")]
        assert [path for path in weights if path.exists()]


async def test_a_process_that_waits_uses_no_processor_and_knows_nothing_of_the_guest(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path
) -> None:
    async with hypervisor.waiting_process(spec, frozen):
        (pid,) = emulators()
        before = processor_ticks(pid)
        await asyncio.sleep(0.5)
        assert processor_ticks(pid) - before <= 1
        assert guest_pages_kb(pid) == 0


def processor_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def guest_pages_kb(pid: int) -> int:
    """Return the kB of the guest's memory that the process has touched."""
    lines = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    for line in lines:
        if "memfd:belljar-guest" in line:
            return next(int(each.split()[1]) for each in lines if each.startswith("Rss:"))
    raise AssertionError("the guest's memory is not mapped")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("fault", [kill, stop])
async def test_a_fault_while_it_waits_is_seen_and_the_clone_has_another_process(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path, fault: Callable[[int], None]
) -> None:
    async with hypervisor.waiting_process(spec, frozen) as process:
        (pid,) = emulators()
        fault(pid)
        async with resumed(hypervisor, spec, frozen, process) as (clone, connection):
            assert clone.id != process.id and pid not in emulators()
            assert await run(connection, "echo fresh") == "fresh\n"


@pytest.mark.root
async def test_the_process_that_replaces_one_with_a_network_gets_its_device(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path
) -> None:
    """A device takes one descriptor, which the failed process has until its end."""
    async with AsyncExitStack() as stack:
        try:
            slot = await enter_isolated_slot(stack)
        except HostError as error:
            pytest.skip(error.message)
        spec = replace(spec, shape=replace(spec.shape, network=True), slot=slot)
        async with hypervisor.waiting_process(spec, frozen) as process:
            kill(emulators()[0])
            async with hypervisor.clone(spec, frozen, process) as clone:
                assert clone.id != process.id and clone.pids()


async def test_a_process_that_does_not_answer_is_replaced_after_a_bounded_time(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in /proc tells that a process hangs: here it is stopped, and /proc is not believed."""
    monkeypatch.setattr("belljar.node.machines.qemu.clone.is_stopped", lambda pids: False)
    async with hypervisor.waiting_process(spec, frozen) as process:
        stop(emulators()[0])
        async with resumed(hypervisor, spec, frozen, process) as (clone, connection):
            assert clone.id != process.id
            assert await run(connection, "echo fresh") == "fresh\n"


async def test_a_process_that_refuses_to_load_is_replaced(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is short of something of its own, such as descriptors: here it is told to load from one that it lacks."""
    async with hypervisor.waiting_process(spec, frozen) as process:
        monkeypatch.setattr("belljar.node.machines.qemu.clone.load_command", lambda state: missing_command)
        missing_command = {"execute": "migrate-incoming", "arguments": {"uri": "fd:missing"}}
        async with asyncio.timeout(SECONDS):
            assert isinstance(process, QemuClone)
            assert not await process.take_over(10)


async def test_a_process_that_cannot_start_for_lack_of_descriptors_says_so(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.machines.host.jail._MAX_FILES", 8)
    with pytest.raises((MachineError, HostError)):
        async with hypervisor.waiting_process(spec, frozen):
            pass


async def test_a_process_that_is_not_needed_ends_with_its_block_at_whatever_moment(
    hypervisor: QemuHypervisor, spec: MachineSpec, frozen: Path
) -> None:
    async def wait() -> None:
        async with hypervisor.waiting_process(spec, frozen):
            await asyncio.sleep(0)

    for milliseconds in (0, 3, 10, 30, 60, 120):
        task = asyncio.create_task(wait())
        await asyncio.sleep(milliseconds / 1000)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert emulators() == []


@pytest.mark.root
async def test_a_killed_belljar_takes_its_waiting_processes_with_it(
    spec: MachineSpec, frozen: Path, tmp_path: Path
) -> None:
    script = tmp_path / "owner.py"
    script.write_text(_OWNER)
    arguments = [str(tmp_path / "data"), str(spec.image.root.parents[2]), str(frozen)]
    owner = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    assert await asyncio.wait_for(owner.stdout.readline(), SECONDS) == b"waits\n"
    name = owner_name(owner.pid)
    left = [pid for pid in descendants(owner.pid) if "qemu" in name_of(pid)]
    assert left
    owner.kill()
    await owner.wait()
    async with asyncio.timeout(20):
        while any(map(alive, left)):
            await asyncio.sleep(0.01)
    await clear_leftovers()
    assert [path for each in find_hierarchies() for path in (each.folder / PARENT).glob(f"{name}.*")] == []
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


_OWNER = """
import asyncio, sys
from pathlib import Path
from belljar.images.catalog import Images
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.qemu.clone import QemuClone
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings

async def main():
    hypervisor = QemuHypervisor(Settings(data_dir=Path(sys.argv[1])), "tcg")
    image = Images(Path(sys.argv[2])).get("shell")
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=128, disk_mb=64), script_disk=None)
    async with hypervisor.waiting_process(spec, Path(sys.argv[3])):
        print("waits", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""
