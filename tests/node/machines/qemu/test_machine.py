"""Real QEMU machines: confined, dead for reasons that are distinguished, and removed without a trace."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.model.image import Image
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.host.cgroup import PARENT, find_hierarchies
from belljar.node.machines.host.descriptors import devnull
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.protocol import Death, DeathCause, Machine, MachineSpec, Shape
from belljar.node.machines.provision.cold_boot import boot_machine
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from support.confinement import check_files, check_network, check_privileges
from support.conversation import hang_up
from support.running import alive, descendants, name_of

pytestmark = pytest.mark.vm

BOOT_SECONDS = 60


@pytest.fixture
def image(built_images: Path) -> Image:
    return Images(built_images).get("shell")


@pytest.fixture
def hypervisor(tmp_path: Path) -> QemuHypervisor:
    return QemuHypervisor(Settings(data_dir=tmp_path), "tcg")


def spec(image: Image, disk_mb: int | None = None) -> MachineSpec:
    return MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=128, disk_mb=disk_mb), script_disk=image.root)


@asynccontextmanager
async def booted(hypervisor: QemuHypervisor, image: Image) -> AsyncIterator[tuple[Machine, AgentConnection]]:
    async with AsyncExitStack() as stack:
        ready = await boot_machine(lambda: hypervisor.machine(spec(image)), BOOT_SECONDS, stack)
        yield ready.machine, ready.connection


async def death_of(machine: Machine) -> Death:
    async with asyncio.timeout(BOOT_SECONDS):
        return await machine.death()


def emulator() -> int:
    """The process id of the one QEMU that this process has."""
    (pid,) = [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)]
    return pid


def belongs_to_a_machine(pid: int) -> bool:
    """Return whether it is an emulator or its jail; images may be built by other processes at the same time."""
    try:
        return b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def groups() -> list[Path]:
    """Return the cgroups of this process's machines."""
    mine = f"{owner_name(os.getpid())}.*"
    return [path for each in find_hierarchies() for path in (each.folder / PARENT).glob(mine)]


@pytest.fixture(autouse=True)
async def nothing_left(tmp_path: Path) -> AsyncIterator[None]:
    """After every test here: no process, cgroup, descriptor or file of a machine."""
    devnull()  # one for the whole process, from its first machine on
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert [pid for pid in descendants(os.getpid()) if alive(pid) and belongs_to_a_machine(pid)] == []
    assert groups() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_the_emulator_is_confined_and_its_guest_powers_off_on_request(
    hypervisor: QemuHypervisor, image: Image
) -> None:
    async with booted(hypervisor, image) as (machine, connection):
        pid = emulator()
        check_privileges(pid)
        check_files(pid, image)
        check_network(pid)
        if os.geteuid() == 0 and find_hierarchies():
            assert groups()
            assert machine.id in Path(f"/proc/{pid}/cgroup").read_text()
        assert list(machine.phases) == ["prepare", "spawn", "boot"]
        hang_up(connection)
        death = await death_of(machine)
        assert (death.cause, machine.console.dropped_bytes) == (DeathCause.GUEST_EXIT, 0)


async def test_a_guest_whose_host_goes_silent_powers_off(hypervisor: QemuHypervisor, image: Image) -> None:
    async with booted(hypervisor, image) as (machine, _connection):
        machine.writer.close()
        assert (await death_of(machine)).cause is DeathCause.GUEST_EXIT


async def test_a_killed_emulator_has_the_cause_killed(hypervisor: QemuHypervisor, image: Image) -> None:
    async with hypervisor.machine(spec(image, disk_mb=64)) as machine:
        async with asyncio.timeout(BOOT_SECONDS):
            while not [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)]:
                await asyncio.sleep(0.01)
        os.kill(emulator(), signal.SIGKILL)
        death = await death_of(machine)
        assert death.cause is DeathCause.KILLED and "SIGKILL" in death.message
        assert await machine.death() == death


async def test_a_panic_of_the_kernel_is_reported_with_its_message(
    hypervisor: QemuHypervisor, image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken") / "initramfs"
    broken.write_bytes(b"no initramfs at all")
    async with hypervisor.machine(spec(image.model_copy(update={"initramfs": broken}))) as machine:
        death = await death_of(machine)
        assert death.cause is DeathCause.GUEST_PANIC
        assert "VFS: Unable to mount root fs" in death.message
        assert b"Kernel panic" in machine.console.data


async def test_a_failed_emulator_is_reported_with_its_last_error(
    hypervisor: QemuHypervisor, image: Image, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken") / "kernel"
    broken.write_bytes(b"no kernel at all")
    async with hypervisor.machine(spec(image.model_copy(update={"kernel": broken}))) as machine:
        death = await death_of(machine)
        assert death.cause is DeathCause.HYPERVISOR
        assert "QEMU failed: it ended with code 1: " in death.message and "\n" not in death.message


@pytest.mark.parametrize("milliseconds", [0, 3, 10, 30, 60, 100, 200, 500])
async def test_a_start_that_is_cancelled_leaves_nothing_at_whatever_moment(
    hypervisor: QemuHypervisor, image: Image, milliseconds: int
) -> None:
    async def start() -> None:
        async with hypervisor.machine(spec(image, disk_mb=32)) as machine:
            await machine.death()

    task = asyncio.create_task(start())
    await asyncio.sleep(milliseconds / 1000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_machine_that_is_killed_twice_is_dead(hypervisor: QemuHypervisor, image: Image) -> None:
    async with hypervisor.machine(spec(image)) as machine:
        await machine.kill()
        await machine.kill()
