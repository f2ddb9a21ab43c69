"""`belljar doctor`: what this host needs, one line for each thing, with the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from belljar.cli.printing import print_json, printable
from belljar.errors import BelljarError
from belljar.images.catalog import Images
from belljar.machines.cgroup import CONTROLLERS, find_hierarchies
from belljar.machines.choose import Chooser
from belljar.settings import Settings
from belljar.worker.capacity import host_memory_mb

Level = Literal["ok", "warn", "fail"]

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "bwrap": "bubblewrap",
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
}
_LEAST_DISK_MB = 1000
_LEAST_MEMORY_MB = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` is a command or a sentence, empty when all is well."""

    name: str
    level: Level
    message: str
    fix: str = ""


async def check_host(settings: Settings) -> list[Check]:
    """Every check, in the order in which a new host fails them."""
    return [check async for check in _checks(settings)]


async def _checks(settings: Settings) -> AsyncIterator[Check]:
    for check in (*_tools(), _namespaces(), _cgroups(), *_room(settings)):
        yield check
    from belljar.cli.network_checks import check_networks  # which imports from here

    async for check in check_networks(settings):
        yield check
    images = Images(settings.data_dir).list()
    if not images:
        yield Check("image", "fail", "no image is built", "belljar image build python")
        return
    yield Check("image", "ok", ", ".join(image.name for image in images))
    try:
        choice = await Chooser(settings).choose(images[0])
        level: Level = "ok" if choice.accelerator == "kvm" else "warn"
        fix = (
            ""
            if level == "ok"
            else "jobs run in software emulation; a host whose KVM works starts them ten times faster"
        )
        yield Check("accelerator", level, f"{choice.hypervisor} with {choice.accelerator}: {choice.reason}", fix)
    except BelljarError as error:
        yield Check("accelerator", "fail", error.message)


def _tools() -> Iterator[Check]:
    for tool, package in _TOOLS.items():
        found = shutil.which(tool)
        if found is None:
            yield Check(tool, "fail", "not installed", f"apt-get install {package}")
        else:
            yield Check(tool, "ok", found)


def _namespaces() -> Check:
    """The jail needs user namespaces, which some distributions keep from ordinary users."""
    most = Path("/proc/sys/user/max_user_namespaces")
    if most.exists() and int(most.read_text()) == 0:
        return Check("namespaces", "fail", "user namespaces are off", "sysctl user.max_user_namespaces=10000")
    debian = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if debian.exists() and debian.read_text().strip() == "0":
        fix = "sysctl kernel.unprivileged_userns_clone=1"
        return Check("namespaces", "fail", "unprivileged user namespaces are off", fix)
    return Check("namespaces", "ok", "user namespaces can be made")


def _cgroups() -> Check:
    hierarchies = find_hierarchies()
    bounded = {name for hierarchy in hierarchies for name in hierarchy.controllers}
    missing = [name for name in CONTROLLERS if name not in bounded]
    if not missing:
        versions = sorted({f"v{hierarchy.version}" for hierarchy in hierarchies})
        return Check("cgroups", "ok", f"{', '.join(CONTROLLERS)} by {' and '.join(versions)}")
    if os.geteuid() == 0:
        return Check(
            "cgroups", "warn", f"not bounded by cgroups: {', '.join(missing)}; rlimits bound the memory instead"
        )
    fix = "run as root, or under: systemd-run --user --scope -p Delegate=yes"
    return Check("cgroups", "warn", f"none for {', '.join(missing)}; rlimits bound the memory instead", fix)


def _room(settings: Settings) -> Iterator[Check]:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Check("data folder", "fail", f"{folder} cannot be written", "set --data-dir to a folder of yours")
    free_mb = shutil.disk_usage(folder).free >> 20
    level: Level = "ok" if free_mb >= _LEAST_DISK_MB else "warn"
    yield Check("disk", level, f"{free_mb} MB free in {folder}", "" if level == "ok" else "free some space")
    memory_mb = host_memory_mb()
    level = "ok" if memory_mb >= _LEAST_MEMORY_MB else "warn"
    yield Check("memory", level, f"{memory_mb} MB", "" if level == "ok" else "jobs of 256 MB fit three at a time")


def print_checks(checks: list[Check], *, as_json: bool) -> None:
    """One line for each, its fix below it."""
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    console = Console(markup=False, highlight=False, soft_wrap=True)
    styles = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        console.print(f"{check.level:5}", style=styles[check.level], end="")
        console.print(f" {check.name}: {printable(check.message)}")
        if check.fix:
            console.print(f"      → {check.fix}")
