"""All checks of this host, each with why it matters and the command that fixes it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from belljar.doctor.check import Check as Check
from belljar.doctor.check import check_that
from belljar.doctor.host import check_host_setup
from belljar.doctor.machines import check_machines
from belljar.doctor.network import check_networks
from belljar.doctor.secrets import check_secrets
from belljar.images.catalog import Images
from belljar.node.machines.host.cgroup import CONTROLLERS, find_hierarchies
from belljar.node.worker.capacity import host_memory_mb
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.settings.storage import StorageSettings
from belljar.system.executables import find_executable

_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
}
_MIN_DISK_MB = 1000
_MIN_MEMORY_MB = 1024


async def check_host(settings: Settings) -> list[Check]:
    """Run every check, in the order in which a new host fails them."""
    return [check async for check in _checks(settings)]


async def _checks(settings: Settings) -> AsyncIterator[Check]:
    for check in (*_tools(), _namespaces(), *_cgroups(), *_space(settings), *check_host_setup()):
        yield check
    async for check in check_networks(settings):
        yield check
    yield await asyncio.to_thread(_stored, settings)
    async for check in check_secrets(settings):
        yield check
    images = Images(settings.data_dir).list()
    if images:
        yield Check("image", "ok", ", ".join(image.name for image in images))
    else:
        yield Check("image", "fail", "no image is built", "belljar image build python")
    async for check in check_machines(settings, images[0] if images else None):
        yield check


def _tools() -> Iterator[Check]:
    for tool, package in _TOOLS.items():
        found = find_executable(tool)
        if found is None:
            yield Check(tool, "fail", "not installed", f"apt-get install {package}")
        else:
            yield Check(tool, "ok", found)


def _namespaces() -> Check:
    """Check user namespaces: jails need them, and some distributions deny them to ordinary users."""
    maximum = Path("/proc/sys/user/max_user_namespaces")
    if maximum.exists() and int(maximum.read_text()) == 0:
        return Check("namespaces", "fail", "user namespaces are off", "sysctl user.max_user_namespaces=10000")
    debian = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if debian.exists() and debian.read_text().strip() == "0":
        fix = "sysctl kernel.unprivileged_userns_clone=1"
        return Check("namespaces", "fail", "unprivileged user namespaces are off", fix)
    return Check("namespaces", "ok", "user namespaces are available")


def _cgroups() -> Iterator[Check]:
    hierarchies = find_hierarchies()
    bounded = {name for hierarchy in hierarchies for name in hierarchy.controllers}
    missing = [name for name in CONTROLLERS if name not in bounded]
    versions = sorted({f"v{hierarchy.version}" for hierarchy in hierarchies})
    root = os.geteuid() == 0
    yield check_that(
        "cgroups",
        not missing,
        f"{', '.join(CONTROLLERS)} by {' and '.join(versions)}",
        f"none for {', '.join(missing)}; rlimits bound the memory instead",
        fix="" if root else "run as root, or under: systemd-run --user --scope -p Delegate=yes",
        why="one machine could take processor time or processes from the others",
    )
    if hierarchies:
        yield check_that(
            "cgroup version",
            versions == ["v2"],
            "2",
            f"{' and '.join(versions)}",
            fix="boot with systemd.unified_cgroup_hierarchy=1",
            why="Firecracker restores snapshots slowly under version 1",
        )


def _space(settings: StorageSettings) -> Iterator[Check]:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        yield Check("data folder", "fail", f"{folder} cannot be written", "set --data-dir to a writable folder")
    yield from _disk(settings)
    memory_mb = host_memory_mb()
    yield check_that(
        "memory", memory_mb >= _MIN_MEMORY_MB, f"{memory_mb} MB", f"{memory_mb} MB",
        fix=f"add memory; {_MIN_MEMORY_MB} MB are the minimum",
    )  # fmt: skip


def _disk(settings: StorageSettings) -> Iterator[Check]:
    for space in disk_space_of(settings).measure():
        free_mb = space.free_bytes >> 20
        free = f"{free_mb} MB and {space.free_inodes} files free in {space.folder}"
        if space.is_low():
            advice = "free disk space, or remove expired data: belljar gc"
            yield Check("disk", "fail", f"{free}: {space.sentence()}", advice, "new jobs and uploads are refused")
        else:
            yield check_that("disk", free_mb >= _MIN_DISK_MB, free, free, fix="free disk space")


def _stored(settings: StorageSettings) -> Check:
    """Report the size of the data folder by kind."""
    from belljar.doctor.sizes import measure_sizes

    sizes = measure_sizes(settings)
    kinds = {kind: extent for kind, extent in sizes.kinds.items() if extent.count}
    parts = [f"{kind} {extent.size_bytes / 1e6:.1f} MB ({extent.count} files)" for kind, extent in kinds.items()]
    total = f"{'' if sizes.complete else 'at least '}{sizes.total.size_bytes / 1e6:.1f} MB"
    return Check("stored", "ok", f"{total}: {', '.join(parts)}" if parts else "nothing yet")
