"""Whole machines of the Firecracker driver over the fake: booted, talked to, killed, and nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from belljar.model.errors import HostError
from belljar.model.image import Image
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.host.cgroup import PARENT, find_hierarchies
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.machines.protocol import DeathCause
from belljar.settings import Settings
from support.conversation import hang_up
from support.firecracker.api_requests import opened, requests_of, run, spec_of
from support.firecracker.inhabitants import check_confinement, inhabitant, status_field
from support.firecracker.leftovers import left_behind

pytestmark = [pytest.mark.vm, pytest.mark.root]


async def test_a_machine_boots_runs_a_command_and_ends_on_request(
    hypervisor: FirecrackerHypervisor, shell: Image
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        connection = await opened(machine)
        assert "Linux belljar-" in await run(connection, "uname -a")
        hang_up(connection)
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.GUEST_EXIT
    assert set(machine.phases) == {"prepare", "spawn"}


async def test_a_boot_makes_no_request_at_all(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        assert requests_of(settings.data_dir) == []
        assert list(settings.data_dir.glob("run/jails/*/*/root/api.sock")) == []


async def test_the_process_runs_as_a_user_of_its_own_in_a_root_of_its_own(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        check_confinement(settings)


async def test_its_memory_processor_and_processes_are_bounded_by_a_cgroup(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    if not any({"memory", "cpu", "pids"} & hierarchy.controllers for hierarchy in find_hierarchies()):
        pytest.skip("this host has no cgroup that can be written")
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        (root,) = settings.data_dir.glob("run/jails/*/*/root")
        pid = inhabitant(root).name
        groups = [hierarchy.folder / PARENT / machine.id for hierarchy in find_hierarchies()]
        found = [group for group in groups if group.exists()]
        assert found
        for group in found:
            assert pid in (group / "cgroup.procs").read_text().split()
        limits = [group / name for group in found for name in ("memory.max", "memory.limit_in_bytes")]
        (limit,) = [int(path.read_text()) for path in limits if path.exists()]
        assert 128 << 20 < limit < 512 << 20


async def test_a_scratch_disk_takes_what_the_job_writes(hypervisor: FirecrackerHypervisor, shell: Image) -> None:
    async with hypervisor.machine(spec_of(shell, disk_mb=200)) as machine:
        connection = await opened(machine)
        script = "dd if=/dev/zero of=/tmp/x bs=1M count=150 2>/dev/null && stat -c %s /tmp/x"  # more than its memory
        assert (await run(connection, script)).strip() == str(150 << 20)


async def test_the_shared_disks_cannot_be_written_by_the_process(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        (root,) = settings.data_dir.glob("run/jails/*/*/root")
        status = (inhabitant(root) / "status").read_text()
        for name in ("kernel", "initramfs", "root.img", "script.img"):
            file = (root / name).stat()
            assert (file.st_uid, file.st_mode & 0o777) == (0, 0o444)
            assert int(status_field(status, "Uid").split()[1]) != 0


async def test_disks_of_another_file_system_are_mounted_read_only(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings, elsewhere: Path
) -> None:
    far = elsewhere / "kernel"
    far.write_bytes(shell.kernel.read_bytes())
    far.chmod(0o444)
    async with hypervisor.machine(spec_of(shell.model_copy(update={"kernel": far}))) as machine:
        await opened(machine)
        (root,) = settings.data_dir.glob("run/jails/*/*/root")
        mounts = (inhabitant(root) / "mountinfo").read_text().splitlines()
        (options,) = [line.split()[5] for line in mounts if line.split()[4] == "/kernel"]
        assert "ro" in options.split(",")
        assert (root / "kernel").stat().st_size == 0  # mounted for the machine alone


async def test_two_machines_at_once_share_nothing(hypervisor: FirecrackerHypervisor, shell: Image) -> None:
    async with hypervisor.machine(spec_of(shell)) as one, hypervisor.machine(spec_of(shell)) as other:
        sessions = await asyncio.gather(opened(one), opened(other))
        names = await asyncio.gather(*(run(connection, "hostname") for connection in sessions))
        assert names[0] != names[1] and one.id != other.id


async def test_killing_is_quick_final_and_may_be_done_twice(hypervisor: FirecrackerHypervisor, shell: Image) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        await machine.kill()
        await machine.kill()


async def test_a_machine_that_is_left_while_it_boots_leaves_nothing(
    hypervisor: FirecrackerHypervisor, shell: Image
) -> None:
    async with hypervisor.machine(spec_of(shell)):
        pass


async def test_a_start_that_is_cancelled_leaves_nothing(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    async def start() -> None:
        async with hypervisor.machine(spec_of(shell)) as machine:
            await machine.death()

    for delay in (0, 0.002, 0.005, 0.02, 0.2):
        task = asyncio.create_task(start())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert left_behind(settings) == []


async def test_a_killed_hypervisor_is_distinguished_from_a_guest_that_ended(
    hypervisor: FirecrackerHypervisor, shell: Image, settings: Settings
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        await opened(machine)
        (root,) = settings.data_dir.glob("run/jails/*/*/root")
        os.kill(int(inhabitant(root).name), signal.SIGKILL)
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.KILLED and "SIGKILL" in death.message


async def test_a_panic_of_the_guest_is_reported_with_its_message(
    hypervisor: FirecrackerHypervisor, shell: Image, tmp_path: Path
) -> None:
    (tmp_path / "empty").write_bytes(bytes(4096))  # the kernel finds nothing to run
    broken = shell.model_copy(update={"initramfs": tmp_path / "empty"})
    async with hypervisor.machine(spec_of(broken)) as machine:
        death = await asyncio.wait_for(machine.death(), 60)
    assert death.cause is DeathCause.GUEST_PANIC and "panicked: " in death.message


async def test_a_console_that_is_flooded_is_bounded(
    settings: Settings, hypervisor: FirecrackerHypervisor, shell: Image
) -> None:
    bounded = FirecrackerHypervisor(settings.model_copy(update={"max_console_kb": 1}))
    async with bounded.machine(spec_of(shell)) as machine:
        connection = await opened(machine)
        hang_up(connection)
        await asyncio.wait_for(machine.death(), 30)
    assert len(machine.console.data) <= 1024


async def test_what_cannot_be_read_is_an_error_that_says_so(
    hypervisor: FirecrackerHypervisor, shell: Image, tmp_path: Path
) -> None:
    spec = spec_of(shell.model_copy(update={"kernel": tmp_path / "absent"}))
    with pytest.raises(HostError, match=r"cannot read .*absent"):
        async with hypervisor.machine(spec):
            pass


async def test_a_script_disk_that_others_may_not_read_is_copied_for_the_machine(
    hypervisor: FirecrackerHypervisor, shell: Image, tmp_path: Path
) -> None:
    disk = tmp_path / "script"
    disk.write_bytes(shell.root.read_bytes()[: 1 << 20])
    disk.chmod(0o600)
    spec = spec_of(shell)
    async with hypervisor.machine(type(spec)(image=spec.image, shape=spec.shape, script_disk=disk)) as machine:
        connection = await opened(machine)
        hang_up(connection)


async def test_the_user_ids_running_out_is_an_error_that_says_so(settings: Settings, shell: Image) -> None:
    few = FirecrackerHypervisor(settings.model_copy(update={"jail_uid_base": 1_999_000, "jail_uid_count": 1}))
    async with few.machine(spec_of(shell)):
        with pytest.raises(HostError, match="raise jail_uid_count"):
            async with few.machine(spec_of(shell)):
                pass
    assert left_behind(settings) == []


async def test_the_reader_of_a_machine_that_dies_before_its_agent_listens_ends(
    hypervisor: FirecrackerHypervisor, shell: Image
) -> None:
    async with hypervisor.machine(spec_of(shell)) as machine:
        assert isinstance(machine, FirecrackerMachine)
        await machine.kill()
        assert await machine.reader.read(1) == b""


async def test_two_belljars_on_one_host_keep_out_of_each_others_way(
    hypervisor: FirecrackerHypervisor, settings: Settings, shell: Image, tmp_path: Path
) -> None:
    other_settings = settings.model_copy(update={"data_dir": tmp_path / "other"})
    other = FirecrackerHypervisor(other_settings)
    async with hypervisor.machine(spec_of(shell)) as one, other.machine(spec_of(shell)) as two:
        await asyncio.gather(opened(one), opened(two))
        roots = [next(each.data_dir.glob("run/jails/*/*/root")) for each in (settings, other_settings)]
        uids = {status_field((inhabitant(root) / "status").read_text(), "Uid") for root in roots}
        assert len(uids) == 2
    assert left_behind(other_settings) == []


async def test_a_killed_belljar_takes_its_machines_with_it_and_the_next_removes_their_folders(
    settings: Settings, shell: Image, tmp_path: Path
) -> None:
    script = tmp_path / "owner.py"
    script.write_text(_OWNER)
    arguments = [str(settings.data_dir), settings.firecracker, settings.jailer]
    owner = await asyncio.create_subprocess_exec(
        sys.executable, str(script), *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    assert await asyncio.wait_for(owner.stdout.readline(), 60) == b"up\n"
    (root,) = settings.data_dir.glob("run/jails/*/*/root")
    pid = int(inhabitant(root).name)
    owner.kill()
    await owner.wait()
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)
    assert await clear_leftovers(jails=settings.paths.jails) >= 1
    assert list(settings.data_dir.glob("run/jails/*/*")) == []


_OWNER = """
import asyncio, sys
from pathlib import Path
from belljar.node.guest.connection import AgentConnection
from belljar.images.catalog import Images
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.settings import Settings

async def main():
    data_dir = Path(sys.argv[1])
    hypervisor = FirecrackerHypervisor(Settings(data_dir=data_dir, firecracker=sys.argv[2], jailer=sys.argv[3]))
    image = Images(data_dir).get("shell")
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=128), script_disk=image.root)
    async with hypervisor.machine(spec) as machine:
        await AgentConnection(machine.reader, machine.writer).open(60)
        print("up", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""
