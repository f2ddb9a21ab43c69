"""Machines from snapshots, for real: alike in their state, unlike in their identity; and every way to damage one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from belljar.model.errors import MachineError
from belljar.node.guest.command import Command
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import WaitingProcesses
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.worker.plan import DEFAULT_ENV
from support.clone_lab import Lab, converse
from support.running import descendants, name_of

pytestmark = pytest.mark.vm

#: Everything that must never be the same in two machines.
WHO_AM_I = """
import json, os, random, secrets, socket, subprocess, tempfile, uuid
read = lambda path: open(path).read().strip()
shell = lambda command: subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.strip()
print(json.dumps({
    "uuid4": str(uuid.uuid4()), "token": secrets.token_hex(16), "random": random.random(),
    "urandom": os.urandom(16).hex(), "getrandom": os.getrandom(16).hex(), "mktemp": tempfile.mkdtemp(),
    "shell mktemp": shell("mktemp -u"), "shell urandom": shell("head -c 16 /dev/urandom | od -An -tx1"),
    "kernel uuid": read("/proc/sys/kernel/random/uuid"), "boot id": read("/proc/sys/kernel/random/boot_id"),
    "machine id": read("/etc/machine-id"), "host name": socket.gethostname(),
}))
"""
#: What all of that comes from, without the libraries and programs that take a second to start.
SOURCES = """
import os, random
read = lambda path: open(path).read().strip()
print("random", random.random())
print("urandom", os.urandom(16).hex())
print("kernel-uuid", read("/proc/sys/kernel/random/uuid"))
print("boot-id", read("/proc/sys/kernel/random/boot_id"))
print("machine-id", read("/etc/machine-id"))
print("host-name", os.uname().nodename)
"""


async def test_fifty_clones_are_fifty_machines(lab: Lab) -> None:
    await lab.make()
    room = asyncio.Semaphore(3)

    async def draw(script: str) -> str:
        async with room:
            ready, sink = await lab.run(script)
        assert ready.source == "snapshot"
        return sink.stdout.decode()

    thorough = [json.loads(text) for text in await asyncio.gather(*(draw(WHO_AM_I) for _ in range(10)))]
    for name in thorough[0]:
        assert len({each[name] for each in thorough}) == 10, name
    found = [text.split() for text in await asyncio.gather(*(draw(SOURCES) for _ in range(40)))]
    drawn = {name: [dict(zip(each[::2], each[1::2], strict=True))[name] for each in found] for name in found[0][::2]}
    for name, values in drawn.items():
        values += [each[name.replace("-", " ")] for each in thorough]
        assert len(set(map(str, values))) == len(values) == 50, name


async def test_clones_of_processes_that_waited_are_as_unlike_as_others_and_a_lost_one_costs_no_job(lab: Lab) -> None:
    await lab.make()
    waiting = WaitingProcesses(max_size=2, has_spare_processor=lambda _: True)
    provisioner = MachineProvisioner(lab.snapshots, waiting=waiting)
    background = asyncio.create_task(provisioner.run(lambda: 1000.0))
    spec = lab.spec(await lab.script(SOURCES))
    drawn: list[list[str]] = []
    try:
        for number in range(6):
            if number > 0:
                async with asyncio.timeout(60):
                    while not sum(waiting.counts().values()):
                        await asyncio.sleep(0.01)
            if number == 3:
                for pid in [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)]:
                    os.kill(pid, signal.SIGSTOP)
            async with provisioner.machine(lab.hypervisor, spec, lab.warm_up_steps, 60) as ready:
                assert ready.source == "snapshot"
                assert ("load" in ready.phases) == (number not in (0, 3))
                drawn.append((await converse(ready)).stdout.decode().split())
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)
    for each in zip(*(values[1::2] for values in drawn), strict=True):
        assert len(set(each)) == 6


async def test_a_clone_knows_the_time_and_is_fresh(lab: Lab) -> None:
    folder = await lab.make()
    await asyncio.sleep(2)  # which the clone must not miss
    script = "import os, time\nprint(time.time(), os.listdir('/tmp'), sorted(os.listdir('/work')), os.getpid())\n"
    before = time.time()
    ready, sink = await lab.run(script)
    now, _, rest = sink.stdout.decode().partition(" ")
    assert before - 0.1 < float(now) < time.time() + 0.1
    assert rest == "[] ['main.py'] 2\n"
    assert list(ready.phases) == ["prepare", "spawn", "resume", "insert"]
    assert (folder / "memory").exists()


async def test_a_first_job_boots_and_the_next_is_cloned(lab: Lab) -> None:
    background = asyncio.create_task(lab.provisioner.run(lambda: 1000.0))
    try:
        ready, sink = await lab.run("print('booted')")
        assert (ready.source, sink.stdout) == ("boot", b"booted\n")
        async with asyncio.timeout(60):
            while lab.snapshots.find(lab.key()) is None:
                await asyncio.sleep(0.1)
        ready, sink = await lab.run("print('cloned')")
        assert (ready.source, sink.stdout) == ("snapshot", b"cloned\n")
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)


async def test_clones_with_scratch_disks_have_each_their_own(lab: Lab) -> None:
    await lab.make(disk_mb=64)
    script = """
import os
print(os.path.exists("mine"))
with open("mine", "wb") as file:
    try:
        while True: file.write(bytes(1 << 20))
    except OSError as error:
        print(error.strerror)
"""
    for _ in range(2):
        ready, sink = await lab.run(script, disk_mb=64)
        assert (ready.source, sink.stdout) == ("snapshot", b"False\nNo space left on device\n")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def garble(path: Path) -> None:
    """Other bytes of the same size and time: only restoring tells."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(64)
        file.write(os.urandom(status.st_size - 64))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("memory", truncate),
        ("memory", Path.unlink),
        ("state", truncate),
        ("state", garble),
        ("snapshot.json", truncate),
    ],
)
async def test_a_damaged_snapshot_is_discarded_and_the_job_boots(lab: Lab, name: str, damage: object) -> None:
    folder = await lab.make()
    damage(folder / name)  # type: ignore[operator]
    ready, sink = await lab.run("print('all the same')")
    assert (ready.source, sink.stdout) == ("boot", b"all the same\n")
    assert not folder.exists()


async def test_deleting_a_snapshot_does_not_affect_its_clones(lab: Lab) -> None:
    folder = await lab.make()
    spec = lab.spec(await lab.script("print(sum(range(1000)))"))
    async with AsyncExitStack() as stack:
        ready = await stack.enter_async_context(lab.provisioner.machine(lab.hypervisor, spec, lab.warm_up_steps, 60))
        truncate(folder / "memory")
        shutil.rmtree(folder)
        assert (ready.source, (await converse(ready)).stdout) == ("snapshot", b"499500\n")
    assert (await lab.run("print('boots')"))[0].source == "boot"


async def test_a_hypervisor_killed_while_it_restores_is_not_the_jobs_failure(lab: Lab) -> None:
    await lab.make()
    running = asyncio.create_task(lab.run("print('whole')"))
    async with asyncio.timeout(30):
        while not (pids := [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)]):
            await asyncio.sleep(0.001)
    os.kill(pids[0], signal.SIGKILL)
    ready, sink = await running
    assert (ready.source, sink.stdout) == ("boot", b"whole\n")


async def test_a_snapshot_that_two_workers_want_is_made_once(lab: Lab) -> None:
    other = Snapshots(lab.settings)
    shape = lab.spec(None).shape
    makers = [each.make(lab.hypervisor, lab.image, shape, lab.warm_up_steps) for each in (lab.snapshots, other)]
    folders = await asyncio.gather(*makers)
    assert sorted(folder is None for folder in folders) == [False, True]
    assert len(lab.snapshots.list()) == 1


async def test_another_warm_up_or_shape_is_another_snapshot(lab: Lab) -> None:
    keys = {lab.key(), lab.key(disk_mb=64)}
    for other in (
        WarmUp(disk=lab.warm_up_steps.disk),
        WarmUp(disk=Path("other"), preload_commands=lab.warm_up_steps.preload_commands),
    ):
        keys.add(lab.snapshots.key(lab.hypervisor, lab.image, lab.spec(None).shape, other))
    assert len(keys) == 4


async def test_the_incomplete_snapshot_of_a_killed_worker_is_removed(lab: Lab) -> None:
    folder = lab.snapshots.folder
    code = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from belljar.images.catalog import Images
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision import warm_clone as warm_clone_module
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.settings import Settings
from belljar.node.worker.warm_ups import WarmUps
settings = Settings(data_dir=Path({str(lab.settings.data_dir)!r}))
image = Images(Path({str(lab.image.root.parents[2])!r})).get("python")
async def main():
    warm_up_steps = await WarmUps(settings).of(image)
    hypervisor = QemuHypervisor(settings, "tcg")
    await Snapshots(settings).make(hypervisor, image, Shape(vcpus=1, memory_mb=128), warm_up_steps)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.partial")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    lab.snapshots.clear_partial()
    assert list(folder.glob("*.partial")), "a living worker's was taken away"
    process.kill()
    process.wait()
    lab.snapshots.clear_partial()
    assert list(folder.glob("*/")) == []


async def test_the_least_recently_used_snapshots_are_evicted(lab: Lab) -> None:
    folder = await lab.make()
    for number in range(3):
        copy = folder.with_name(f"{number}" * 32)
        shutil.copytree(folder, copy)
        os.utime(copy, (number, number))
    (folder.with_name("f" * 32)).mkdir()  # no snapshot at all
    each_mb = max(int(str(note["disk_bytes"])) for note in lab.snapshots.list()) >> 20
    small = Snapshots(lab.settings.model_copy(update={"snapshot_disk_mb": 2 * each_mb + each_mb // 2}))
    small.evict(folder.name)
    assert sorted(path.name for path in lab.snapshots.folder.glob("*/")) == sorted([folder.name, "2" * 32])


async def test_a_snapshot_source_that_cannot_be_prepared_leaves_nothing(lab: Lab) -> None:
    broken = WarmUp(disk=lab.warm_up_steps.disk, preload_commands=(Command(argv=["false"], env=DEFAULT_ENV),))
    with pytest.raises(MachineError, match="warm-up command false ended with 1"):
        await lab.snapshots.make(lab.hypervisor, lab.image, lab.spec(None).shape, broken)
    assert list(lab.snapshots.folder.glob("*/")) == []
    assert not await lab.provisioner.make_snapshot(lab.hypervisor, lab.spec(None), broken)


async def test_a_clones_hypervisor_cannot_write_to_the_snapshot(lab: Lab) -> None:
    await lab.make()
    spec = lab.spec(await lab.script("print()"))
    async with lab.provisioner.machine(lab.hypervisor, spec, lab.warm_up_steps, 60) as ready:
        (qemu,) = [pid for pid in ready.machine.pids() if "qemu" in name_of(pid)]
        memories = [fd for fd in Path(f"/proc/{qemu}/fd").iterdir() if "memfd" in os.readlink(fd)]
        assert memories
        for path in memories:
            descriptor = os.open(path, os.O_RDWR)
            try:
                with pytest.raises(PermissionError):
                    os.pwrite(descriptor, b"x", 0)
            finally:
                os.close(descriptor)
