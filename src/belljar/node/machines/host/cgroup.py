"""Limits on a hypervisor's processes by cgroup: v2, v1, both at once, or none where belljar may not write.

Without a cgroup, rlimits apply (jail.py). A group exists before its process starts, is joined before the process runs
any code of the guest, and is removed together with every process in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()

CONTROLLERS = ("memory", "cpu", "pids")
PARENT = "belljar"
_PERIOD_US = 100_000
_REMOVE_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """The limits of one machine's processes."""

    memory_bytes: int
    cpus: float
    processes: int
    #: Share of a busy processor, where every other group has 100.
    weight: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Hierarchy:
    """One mounted cgroup file system and the folder for new groups in it."""

    version: int
    folder: Path
    controllers: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One machine's group: a folder in each hierarchy that limits something."""

    folders: tuple[Path, ...]

    @property
    def procs(self) -> tuple[Path, ...]:
        """Return the files to which a process writes its pid to join."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    def set_weight(self, weight: int) -> None:
        """Change the share of the processor. Does nothing where no group limits it, or after its removal."""
        for folder in self.folders:
            for file, value in _weights(weight):
                with contextlib.suppress(OSError):
                    if (folder / file).exists():
                        (folder / file).write_text(value)


def find_hierarchies(
    mountinfo: Path = Path("/proc/self/mountinfo"), membership: Path = Path("/proc/self/cgroup")
) -> list[Hierarchy]:
    """Return the hierarchies in which groups can be made, those with the most useful controllers first.

    Sources: proc(5), cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v2.rst.
    """
    own_paths = _own_paths(membership)
    hierarchies = []
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2":
            hierarchy = _v2(point, own_paths.get("", "/"))
        elif kind == "cgroup":
            hierarchy = _v1(point, options, own_paths)
        else:
            continue
        if hierarchy is not None:
            hierarchies.append(hierarchy)
    return sorted(hierarchies, key=lambda each: -len(each.controllers))


def _own_paths(membership: Path) -> dict[str, str]:
    """Return this process's path in each controller's hierarchy; the empty name stands for v2."""
    own_paths: dict[str, str] = {}
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own_paths[controller] = path
    return own_paths


def _v2(point: Path, own: str) -> Hierarchy | None:
    """Return the root of the hierarchy if it is writable, else the group that was delegated to this user."""
    own_folder = point / own.lstrip("/")
    # A group with controllers for children may hold no process, so a delegated group's processes are in a child of it.
    for folder in (point, own_folder, own_folder.parent):
        if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.subtree_control", os.W_OK):
            continue
        have = frozenset((folder / "cgroup.controllers").read_text().split()) & frozenset(CONTROLLERS)
        if have:
            return Hierarchy(version=2, folder=folder, controllers=have)
    return None


def _v1(point: Path, options: str, own_paths: dict[str, str]) -> Hierarchy | None:
    have = frozenset(options.split(",")) & frozenset(CONTROLLERS)
    if not have:
        return None
    own = point / own_paths.get(next(iter(have)), "/").lstrip("/")
    for folder in (point, own):
        if os.access(folder, os.W_OK):
            return Hierarchy(version=1, folder=folder, controllers=have)
    return None


@asynccontextmanager
async def machine_group(hierarchies: Iterable[Hierarchy], name: str, bounds: Bounds) -> AsyncIterator[Group]:
    """Make a group for one machine; kill its processes and remove it at the end.

    Where belljar may write no hierarchy, the group has no folder and limits nothing.
    """
    folders: list[Path] = []
    try:
        limited: set[str] = set()
        for hierarchy in hierarchies:
            controllers = hierarchy.controllers - limited
            if controllers and (folder := _make(hierarchy, name, bounds, controllers)) is not None:
                folders.append(folder)
                limited |= controllers
        yield Group(folders=tuple(folders))
    finally:
        for folder in folders:
            await remove_group(folder)
            with contextlib.suppress(OSError):  # other machines have groups in it
                folder.parent.rmdir()


def _make(hierarchy: Hierarchy, name: str, bounds: Bounds, controllers: frozenset[str]) -> Path | None:
    parent = hierarchy.folder / PARENT
    folder = parent / name
    try:
        if hierarchy.version == 2:
            _enable(hierarchy.folder, controllers)
        _make_folder(hierarchy, parent, folder, controllers)
        for file, value in _values(hierarchy.version, bounds, controllers):
            (folder / file).write_text(value)
    except OSError as error:
        log.warning("cgroup_not_created", folder=str(folder), error=str(error))
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder


def _make_folder(hierarchy: Hierarchy, parent: Path, folder: Path, controllers: frozenset[str]) -> None:
    while True:
        try:
            parent.mkdir(exist_ok=True)
            if hierarchy.version == 2:
                _enable(parent, controllers)
            folder.mkdir()
            return
        except FileNotFoundError:
            continue  # another process ended its last machine and removed the parent


def _enable(folder: Path, controllers: frozenset[str]) -> None:
    have = set((folder / "cgroup.subtree_control").read_text().split())
    missing = sorted(controllers - have)
    if missing:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))


def _weights(weight: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return file name and value for v2 and v1; the defaults of these files are 100 and 1024."""
    return ("cpu.weight", str(weight)), ("cpu.shares", str(1024 * weight // 100))


def _values(version: int, bounds: Bounds, controllers: frozenset[str]) -> list[tuple[str, str]]:
    quota = int(bounds.cpus * _PERIOD_US)
    new, old = _weights(bounds.weight)
    by_controller = {
        (2, "memory"): [("memory.max", str(bounds.memory_bytes))],
        (2, "cpu"): [("cpu.max", f"{quota} {_PERIOD_US}"), new],
        (1, "memory"): [("memory.limit_in_bytes", str(bounds.memory_bytes))],
        (1, "cpu"): [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", str(quota)), old],
    }
    pids = [("pids.max", str(bounds.processes))]
    return [pair for name in sorted(controllers) for pair in by_controller.get((version, name), pids)]


async def remove_group(folder: Path) -> None:
    """Kill every process in the group and remove it, within two seconds; else log it for `clear_leftovers` to retry."""
    deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("cgroup_removal_failed", folder=str(folder), error=str(error))
                return
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        await asyncio.sleep(0.005)
