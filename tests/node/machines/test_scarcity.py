"""A host that has too few files, processes or room on its disk: one error that says what to do, and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull, HostError, host_error
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings

pytestmark = pytest.mark.process

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bwrap", "setpriv", "mkfs.ext4")),
    reason="needs bubblewrap, setpriv and e2fsprogs",
)

#: Starts machines whose hypervisor is `true` under every limit of a range; says for each what came of it, and what is
#: left of descriptors, processes, cgroups and files.
SCRIPT = """
import asyncio, gc, json, os, resource, sys
from pathlib import Path
from belljar.model.errors import HostError
from belljar.model.image import Image, Manifest, Part
from belljar.node.machines.host.cgroup import PARENT, find_hierarchies
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.machines.qemu.memory import new_memory
from belljar.settings import Settings

place, limit, values = Path(sys.argv[1]), getattr(resource, sys.argv[2]), json.loads(sys.argv[3])
part = Part(sha256="0" * 64, size_bytes=0, origin="")
file = place / "file"
manifest = Manifest(name="x", architecture="x", digest="0", languages=(), kernel=part, initramfs=part, root=part)
image = Image(manifest=manifest, kernel=file, initramfs=file, root=file)
settings = Settings(data_dir=place / "data", qemu="true")

def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))

def groups():
    mine = owner_name(os.getpid()) + ".*"
    return [str(path) for each in find_hierarchies() for path in (each.folder / PARENT).glob(mine)]

def children():
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()

async def start(hypervisor, how):
    shape = Shape(vcpus=1, memory_mb=64, disk_mb=8)
    if how == "clone":
        spec = MachineSpec(image=image, shape=shape, script_disk=None)
        making = hypervisor.clone(spec, place / "snapshot")
    else:
        making = hypervisor.machine(MachineSpec(image=image, shape=shape, script_disk=file))
    async with making as machine:
        await asyncio.wait_for(machine.death(), 60)
        return "started"

async def main():
    hypervisor = QemuHypervisor(settings, "tcg")
    for how in ("boot", "clone"):
        print(json.dumps({"how": how, "result": await start(hypervisor, how)}), flush=True)  # what is made once is made
    for how in ("boot", "clone"):
        hypervisor.release_snapshot(place / "snapshot")
        before = descriptors()
        _, hard = resource.getrlimit(limit)
        for value in values:
            count = value + before if limit == resource.RLIMIT_NOFILE else value
            resource.setrlimit(limit, (count, hard))
            try:
                result = await start(hypervisor, how)
            except HostError as error:
                result = f"{type(error).__name__}: {error.message}"
            except Exception as error:
                result = f"broken: {type(error).__name__}: {error}"
            finally:
                resource.setrlimit(limit, (hard, hard))
            hypervisor.release_snapshot(place / "snapshot")
            for _ in range(200):  # a process that failed to start is reaped a moment later
                await asyncio.sleep(0.01)
                if descriptors() == before and not children():
                    break
            left = {"descriptors": descriptors() - before, "groups": groups(), "children": children()}
            left["files"] = [str(path) for path in (place / "data" / "run").rglob("*") if path.is_file()]
            print(json.dumps({"how": how, "value": value, "result": result, "left": left}), flush=True)
asyncio.run(main())
"""


def outcomes(place: Path, limit: str, values: list[int], *, user: int | None) -> list[dict[str, object]]:
    (place / "file").write_bytes(b"x" * 4096)
    (place / "snapshot").mkdir()
    for name in ("memory", "state", "scratch"):
        (place / "snapshot" / name).write_bytes(b"x" * 4096)
    argv: list[str] = []
    if user is not None:
        for path in (place, *place.rglob("*")):
            os.lchown(path, user, user)
        argv = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
        may = subprocess.run([*argv, sys.executable, "-c", "import belljar"], capture_output=True, timeout=60, cwd="/")
        if may.returncode != 0:
            pytest.skip("the code cannot be read by other users")
    command = [*argv, sys.executable, "-c", SCRIPT, str(place), limit, json.dumps(values)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


def clean(outcome: dict[str, object]) -> bool:
    return outcome.get("left", {}) in ({}, {"descriptors": 0, "groups": [], "children": [], "files": []})


@needs_tools
@pytest.mark.parametrize("user", [pytest.param(None, id="as this user"), pytest.param(4243, marks=pytest.mark.root)])
def test_a_start_without_enough_descriptors_says_so_and_leaves_nothing(everybodys: Path, user: int | None) -> None:
    found = outcomes(everybodys, "RLIMIT_NOFILE", [*range(1, 44, 2), 80], user=user)
    assert [each for each in found if not clean(each)] == []
    assert [each["result"] for each in found if str(each["result"]).startswith("broken")] == []
    refused = [str(each["result"]) for each in found if each["result"] != "started"]
    assert len(refused) >= 10
    assert [each for each in refused if "limit of open files" not in each or "ulimit -n" not in each] == []
    assert found[-1]["result"] == "started"


@needs_tools
@pytest.mark.root
def test_a_start_without_enough_processes_says_so_and_leaves_nothing(everybodys: Path) -> None:
    found = outcomes(everybodys, "RLIMIT_NPROC", [1, 2], user=4244)
    assert [each for each in found if not clean(each)] == []
    refused = [str(each["result"]) for each in found if "value" in each]
    assert all("limit of processes" in each and "ulimit -u" in each for each in refused), refused


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (24, HostError, "LimitNOFILE"),
        (23, HostError, "fs.file-max"),
        (11, HostError, "TasksMax"),
        (12, HostError, "run fewer or smaller jobs"),
        (28, DiskFull, "free some space"),
        (122, DiskFull, "free some space"),
        (5, HostError, "Input/output error"),
    ],
)
def test_every_shortage_comes_with_advice(number: int, kind: type[HostError], advice: str) -> None:
    error = host_error(OSError(number, os.strerror(number)), "start a machine")
    assert type(error) is kind
    assert error.message.startswith("cannot start a machine: ") and advice in error.message


@pytest.mark.root
async def test_a_disk_without_room_is_that_error(tmp_path: Path) -> None:
    small = tmp_path / "data" / "run" / "scratch"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=2", "tmpfs", small], check=True, timeout=30)
    try:
        (small / "taken").touch()
        hypervisor = QemuHypervisor(Settings(data_dir=tmp_path / "data", qemu="true"), "tcg")
        from contextlib import AsyncExitStack

        async with AsyncExitStack() as stack:
            with pytest.raises(DiskFull, match="free some space"):
                hypervisor._empty_disk(1 << 20, stack)
    finally:
        subprocess.run(["umount", "--lazy", small], check=True, timeout=30)
