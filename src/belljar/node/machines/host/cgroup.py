"""Bounds on a hypervisor's process by cgroup, whichever kind this host has: v2, v1, both at once, or none to write to.

What cannot be bounded here is bounded by rlimits (jail.py). A group is made before the process exists, joined before it
executes anything of the guest's, and removed with everything in it.
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
    """What one machine's processes may take of the host."""

    memory_bytes: int
    cpus: float
    processes: int
    #: How much of a busy processor, beside 100 for everything else.
    weight: int = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Hierarchy:
    """One mounted cgroup file system and where new groups go in it."""

    version: int
    folder: Path
    controllers: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One machine's group: a folder in each hierarchy that bounds something."""

    folders: tuple[Path, ...]

    @property
    def procs(self) -> tuple[Path, ...]:
        """The files that a process writes its pid to."""
        return tuple(folder / "cgroup.procs" for folder in self.folders)

    def set_weight(self, weight: int) -> None:
        """Change the bounds' weight. Does nothing where no group bounds the processor, or it is gone."""
        for folder in self.folders:
            for file, value in _weights(weight):
                with contextlib.suppress(OSError):
                    if (folder / file).exists():
                        (folder / file).write_text(value)


def find_hierarchies(
    mountinfo: Path = Path("/proc/self/mountinfo"), membership: Path = Path("/proc/self/cgroup")
) -> list[Hierarchy]:
    """The hierarchies that groups can be made in, those with the controllers that are wanted first.

    Sources: proc(5), cgroups(7), and the kernel's Documentation/admin-guide/cgroup-v2.rst.
    """
    places = _own_places(membership)
    found = []
    for line in mountinfo.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2":
            hierarchy = _v2(point, places.get("", "/"))
        elif kind == "cgroup":
            hierarchy = _v1(point, options, places)
        else:
            continue
        if hierarchy is not None:
            found.append(hierarchy)
    return sorted(found, key=lambda each: -len(each.controllers))


def _own_places(membership: Path) -> dict[str, str]:
    """Controller → this process's path in its hierarchy; the empty name stands for v2."""
    places: dict[str, str] = {}
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            places[controller] = path
    return places


def _v2(point: Path, own: str) -> Hierarchy | None:
    """Below the root when that can be written (root), else below the group that was delegated to this user."""
    own_folder = point / own.lstrip("/")
    # A delegated group's processes sit in a child of it, since a group with controllers for children holds none itself.
    for folder in (point, own_folder, own_folder.parent):
        if not os.access(folder, os.W_OK) or not os.access(folder / "cgroup.subtree_control", os.W_OK):
            continue
        have = frozenset((folder / "cgroup.controllers").read_text().split()) & frozenset(CONTROLLERS)
        if have:
            return Hierarchy(version=2, folder=folder, controllers=have)
    return None


def _v1(point: Path, options: str, places: dict[str, str]) -> Hierarchy | None:
    have = frozenset(options.split(",")) & frozenset(CONTROLLERS)
    if not have:
        return None
    own = point / places.get(next(iter(have)), "/").lstrip("/")
    for folder in (point, own):
        if os.access(folder, os.W_OK):
            return Hierarchy(version=1, folder=folder, controllers=have)
    return None


@asynccontextmanager
async def machine_group(hierarchies: Iterable[Hierarchy], name: str, bounds: Bounds) -> AsyncIterator[Group]:
    """A group for one machine, gone with all its processes at the end. Bounds nothing where nothing can be written."""
    folders: list[Path] = []
    try:
        bounded: set[str] = set()
        for hierarchy in hierarchies:
            wanted = hierarchy.controllers - bounded
            if wanted and (folder := _make(hierarchy, name, bounds, wanted)) is not None:
                folders.append(folder)
                bounded |= wanted
        yield Group(folders=tuple(folders))
    finally:
        for folder in folders:
            await remove_group(folder)
            with contextlib.suppress(OSError):  # others have machines
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
        log.warning("cgroup_unusable", folder=str(folder), error=str(error))
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
            continue  # another's last machine ended and took the parent away


def _enable(folder: Path, controllers: frozenset[str]) -> None:
    have = set((folder / "cgroup.subtree_control").read_text().split())
    missing = sorted(controllers - have)
    if missing:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))


def _weights(weight: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """The files of v2 and v1 and what is written to them, of which 100 and 1024 are what every group has at first."""
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
    """Kill what is in the group and remove it, within two seconds; what stays is reported, and tried again later."""
    deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if asyncio.get_running_loop().time() > deadline:
                log.warning("cgroup_left", folder=str(folder), error=str(error))
                return
        with contextlib.suppress(OSError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        await asyncio.sleep(0.005)
