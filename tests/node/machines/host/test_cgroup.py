"""Which cgroups bound a machine: v1, v2, both, delegated, none; in trees as hosts have them, and in this host's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from belljar.node.machines.host.cgroup import (
    CONTROLLERS,
    PARENT,
    Bounds,
    Hierarchy,
    find_hierarchies,
    machine_group,
    remove_group,
)

BOUNDS = Bounds(memory_bytes=300 << 20, cpus=1.5, processes=100)
ALL = frozenset(CONTROLLERS)


class Host:
    """A host as /proc/self/mountinfo and /proc/self/cgroup show it, below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mountinfo = folder / "mountinfo"
        self.membership = folder / "membership"
        self.mountinfo.write_text("22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n")
        self.membership.write_text("")

    def mount(self, point: str, kind: str, options: str = "rw") -> Path:
        folder = self.folder / point
        folder.mkdir(parents=True, exist_ok=True)
        with self.mountinfo.open("a") as file:
            file.write(f"30 22 0:26 / {folder} rw,nosuid - {kind} {kind} {options}\n")
        return folder

    def member(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def found(self) -> list[Hierarchy]:
        return find_hierarchies(self.mountinfo, self.membership)


def v2(folder: Path, controllers: str = "cpuset cpu io memory hugetlb pids", enabled: str = "") -> Path:
    """A group of v2 with these controllers, whose own groups may have those that are enabled."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(f"{controllers}\n")
    (folder / "cgroup.subtree_control").write_text(f"{enabled}\n")
    return folder


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_host_with_v2_alone(host: Host) -> None:
    root = v2(host.mount("cgroup", "cgroup2"))
    host.member("0::/user.slice/session-1.scope")
    assert host.found() == [Hierarchy(version=2, folder=root, controllers=ALL)]


def test_a_host_with_v1_alone(host: Host) -> None:
    memory = host.mount("memory", "cgroup", "rw,memory")
    cpu = host.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct")
    pids = host.mount("pids", "cgroup", "rw,pids")
    host.mount("freezer", "cgroup", "rw,freezer")
    host.mount("systemd", "cgroup", "rw,xattr,name=systemd")
    host.member("4:memory:/", "3:cpu,cpuacct:/", "2:pids:/", "1:name=systemd:/")
    assert {(each.version, each.folder, each.controllers) for each in host.found()} == {
        (1, memory, frozenset({"memory"})),
        (1, cpu, frozenset({"cpu"})),
        (1, pids, frozenset({"pids"})),
    }


def test_a_hybrid_whose_v2_has_nothing_that_is_wanted(host: Host) -> None:
    together = host.mount("all", "cgroup", "rw,memory,cpu,pids")
    v2(host.mount("unified", "cgroup2"), "hugetlb")
    host.member("1:memory,cpu,pids:/x", "0::/x")
    assert host.found() == [Hierarchy(version=1, folder=together, controllers=ALL)]


def test_a_hybrid_with_some_controllers_on_each_side(host: Host) -> None:
    memory = host.mount("memory", "cgroup", "rw,memory")
    unified = v2(host.mount("unified", "cgroup2"), "cpu pids")
    host.member("1:memory:/", "0::/")
    found = host.found()
    assert [each.folder for each in found] == [unified, memory]  # the one that bounds most comes first
    assert frozenset().union(*(each.controllers for each in found)) == ALL


def test_a_group_that_was_delegated_to_an_ordinary_user(host: Host) -> None:
    root = host.mount("cgroup", "cgroup2")  # nothing in it that could be written
    delegated = v2(root / "user.slice/belljar.scope", "memory pids")
    host.member("0::/user.slice/belljar.scope")
    assert host.found() == [Hierarchy(version=2, folder=delegated, controllers=frozenset({"memory", "pids"}))]


def test_a_delegated_group_whose_processes_sit_in_a_child_of_it(host: Host) -> None:
    root = host.mount("cgroup", "cgroup2")
    delegated = v2(root / "user.slice/belljar.service")
    v2(delegated / "main", "")
    host.member("0::/user.slice/belljar.service/main")
    assert [each.folder for each in host.found()] == [delegated]


def test_a_v1_group_that_was_delegated(host: Host) -> None:
    root = host.mount("memory", "cgroup", "rw,memory")
    own = root / "docker/abc"
    own.mkdir(parents=True)
    host.member("4:memory:/docker/abc")
    (found,) = host.found()
    assert found.folder in (root, own)


def test_a_host_without_cgroups(host: Host) -> None:
    assert host.found() == []


async def test_what_is_written_for_v2(host: Host) -> None:
    root = v2(host.mount("cgroup", "cgroup2"))
    v2(root / PARENT)
    (hierarchy,) = host.found()
    folder = root / PARENT / "m"
    async with machine_group([hierarchy], "m", BOUNDS) as group:
        assert group.procs == (folder / "cgroup.procs",)
        assert (folder / "memory.max").read_text() == str(300 << 20)
        assert (folder / "cpu.max").read_text() == "150000 100000"
        assert (folder / "pids.max").read_text() == "100"
        assert (root / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
        assert (folder / "cpu.weight").read_text() == "100"
        for name in ("memory.max", "cpu.max", "cpu.weight", "pids.max"):
            (folder / name).unlink()  # the kernel's own are no obstacle to rmdir
    assert not folder.exists()


async def test_a_controller_is_bounded_once_and_an_unusable_hierarchy_left_out(host: Host) -> None:
    broken = Hierarchy(version=2, folder=host.folder / "gone", controllers=ALL)
    async with machine_group([broken], "m", BOUNDS) as group:
        assert group.folders == ()
    root = host.folder / "v1"
    root.mkdir()
    whole = Hierarchy(version=1, folder=root, controllers=ALL)
    again = Hierarchy(version=2, folder=host.folder / "gone", controllers=frozenset({"memory"}))
    async with machine_group([whole, again], "m", BOUNDS) as group:
        assert group.folders == (root / PARENT / "m",)
        assert (root / PARENT / "m/memory.limit_in_bytes").read_text() == str(300 << 20)
        for path in (root / PARENT / "m").iterdir():
            path.unlink()
    assert list(root.iterdir()) == []


@pytest.fixture
def real() -> list[Hierarchy]:
    found = find_hierarchies()
    if os.geteuid() != 0 or not found:
        pytest.skip("needs cgroups that can be written")
    return found


async def test_the_kernel_takes_the_bounds_and_the_group_goes_with_its_processes(real: list[Hierarchy]) -> None:
    name = f"test-{os.getpid()}"
    async with machine_group(real, name, BOUNDS) as group:
        assert group.folders
        written = {path.name: path.read_text().strip() for folder in group.folders for path in folder.glob("*.max")}
        written |= {p.name: p.read_text().strip() for f in group.folders for p in f.glob("memory.limit_in_bytes")}
        assert str(300 << 20) in (written.get("memory.max"), written.get("memory.limit_in_bytes"))
        assert written.get("pids.max", "100") == "100"
        process = subprocess.Popen(["sleep", "300"])
        for procs in group.procs:
            procs.write_text(str(process.pid))
        assert name in Path(f"/proc/{process.pid}/cgroup").read_text()
    assert await asyncio.to_thread(process.wait, 10) == -9
    assert not any(folder.exists() for folder in group.folders)


async def test_a_background_machine_weighs_little_until_it_is_in_the_foreground(real: list[Hierarchy]) -> None:
    light = replace(BOUNDS, weight=10)
    async with machine_group(real, f"test-weight-{os.getpid()}", light) as group:

        def weights() -> set[str]:
            files = [folder / name for folder in group.folders for name in ("cpu.weight", "cpu.shares")]
            return {file.read_text().strip() for file in files if file.exists()}

        assert weights() <= {"10", "102"}
        before = len(weights())
        group.set_weight(100)
        assert weights() <= {"100", "1024"} and len(weights()) == before
    group.set_weight(10)  # it is gone: no error


async def test_a_process_cannot_take_more_memory_than_its_group_has(real: list[Hierarchy]) -> None:
    small = Bounds(memory_bytes=32 << 20, cpus=1, processes=10)
    async with machine_group(real, f"test-memory-{os.getpid()}", small) as group:
        greedy = "for p in $0; do echo $$ >$p; done; exec head -c 200M /dev/zero | tail"
        script = ["/bin/sh", "-c", greedy, " ".join(map(str, group.procs))]
        process = await asyncio.create_subprocess_exec(*script, stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(60):
            assert await process.wait() != 0


async def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    await remove_group(tmp_path / "gone")
