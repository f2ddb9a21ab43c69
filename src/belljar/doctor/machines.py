"""Checks of what runs machines: QEMU, Firecracker, its jailer, KVM (by a boot), and what jails need."""

from __future__ import annotations

import asyncio
import math
import os
import pwd
import subprocess
from collections.abc import AsyncIterator, Iterator

from belljar.doctor.check import Check, Level, check_that
from belljar.model.errors import BelljarError, HostError, MissingTool
from belljar.model.image import Image
from belljar.node.machines.deadline_uses import DeadlineUse, read_deadline_uses
from belljar.node.machines.deadlines import DEFAULT_BOOT_SECONDS
from belljar.node.machines.firecracker.program import OLDEST, find_programs
from belljar.node.machines.host.jail import require_tool
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.machines.selector import KVM, HypervisorSelector
from belljar.settings import Settings
from belljar.system.ownership import why_unsafe

_TEN_TIMES = "jobs run in software emulation; a host whose KVM works starts them ten times faster"
#: A deadline of which this share was used is close.
_CLOSE = 0.7
_SHOWN_DEADLINES = 3
#: What a machine is waited for (node/machines/deadline_uses.py) → words.
_WAITS = {
    "boot": "a boot",
    "probe": "the boot that tries KVM",
    "resume": "the answer of a clone",
    "connect": "the connection to a clone",
    "api_socket": "the start of Firecracker",
    "snapshot_load": "the load of a snapshot",
    "freeze": "the freezing of a machine",
    "warm_up": "a warm-up command",
    "prepare": "the start of a waiting interpreter",
    "suspend": "the suspension before freezing",
    "start": "the start of a script",
    "collect": "the fetching of artifacts",
}
_NODEV = 4  # ST_NODEV, statvfs(3)


async def check_machines(settings: Settings, image: Image | None) -> AsyncIterator[Check]:
    """Check hypervisors and jails; with an image, also boot its kernel under KVM."""
    for check in await asyncio.to_thread(
        lambda: [*_qemu(settings), _kvm_device(), *_firecracker(settings), *_jails(settings)]
    ):
        yield check
    if image is not None:
        yield await _choice(settings, image)
    yield await asyncio.to_thread(_deadlines, settings)


def _qemu(settings: Settings) -> Iterator[Check]:
    try:
        version = QemuHypervisor(settings, "tcg").version
    except MissingTool:
        return  # the check of the tools reports it
    except HostError as error:
        yield Check("QEMU", "fail", error.message, "apt-get install --reinstall qemu-system-x86")
        return
    help_text = _output([require_tool(settings.qemu, "qemu-system-x86"), "-machine", "help"])
    yield check_that(
        "QEMU",
        any(line.startswith("microvm") for line in help_text.splitlines()),
        f"{version}, with the machine microvm",
        f"{version} has no machine microvm",
        fix="apt-get install qemu-system-x86 (4.2 or newer)",
        level="fail",
    )


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _kvm_device() -> Check:
    if not KVM.exists():
        fix = "modprobe kvm_intel or kvm_amd; in a cloud, take an instance with nested virtualisation or bare metal"
        return Check("KVM device", "warn", "this host has no /dev/kvm", fix, _TEN_TIMES)
    return check_that(
        "KVM device",
        os.access(KVM, os.R_OK | os.W_OK),
        "/dev/kvm opens; the boot below shows whether it runs a kernel",
        "this user may not open /dev/kvm",
        fix="usermod -aG kvm USER, and log in again",
        why=_TEN_TIMES,
    )


def _firecracker(settings: Settings) -> Iterator[Check]:
    jailed = os.geteuid() == 0
    level: Level = "fail" if settings.hypervisor == "firecracker" else "warn"
    try:
        programs = find_programs(settings, jailed=jailed)
    except MissingTool as error:
        if level == "warn" and not KVM.exists():
            yield Check("Firecracker", "ok", "not installed; without KVM it could not run")
        else:
            yield Check("Firecracker", level, "not installed", error.message, "recommended for production with KVM")
        return
    except HostError as error:
        yield Check("Firecracker", level, error.message, f"install {'.'.join(map(str, OLDEST))} or newer")
        return
    yield Check("Firecracker", "ok", programs.version)
    if programs.jailer is None:
        yield Check(
            "jailer",
            "warn",
            "not used, because belljar is not root",
            "run belljar as root",
            "machines then share this user's id; bubblewrap and Firecracker's seccomp filters still confine them",
        )
    else:
        yield Check("jailer", "ok", f"{programs.version}; each machine has a user id and a root directory of its own")
    programs_used = [path for path in (programs.firecracker, programs.jailer) if path]
    unsafe = [reason for path in programs_used if (reason := why_unsafe(path.absolute()))]
    yield check_that(
        "executables",
        not unsafe,
        "only root can change them",
        "; ".join(dict.fromkeys(unsafe)),
        fix="chown root: and chmod go-w them and the folders above them",
        why="a user who can change them can run code as root",
        level="fail" if jailed else "warn",
    )


def _jails(settings: Settings) -> Iterator[Check]:
    if os.geteuid() != 0:
        return
    place = settings.paths.jails
    while not place.exists():
        place = place.parent
    yield check_that(
        "jails",
        not os.statvfs(place).f_flag & _NODEV,
        "device nodes can be opened in the data folder",
        "the data folder is on a file system that is mounted nodev",
        fix="move the data folder, or mount -o remount,dev its file system",
        why="Firecracker's jailer creates /dev/kvm in each machine's root directory",
    )
    if settings.data_dir.exists():
        status = settings.data_dir.stat()
        yield check_that(
            "data folder's owner",
            status.st_uid == os.geteuid() and not status.st_mode & 0o022,
            "only its owner can write it",
            f"{settings.data_dir} can be written by others",
            fix=f"chown root: {settings.data_dir} && chmod go-w {settings.data_dir}",
            why="machines boot from files there, and root creates their root directories there",
            level="fail",
        )
    first, last = settings.jail_uid_base, settings.jail_uid_base + settings.jail_uid_count - 1
    taken = [user.pw_name for user in pwd.getpwall() if first <= user.pw_uid <= last]
    yield check_that(
        "user ids",
        not taken,
        f"{first} to {last} belong to machines only",
        f"{', '.join(taken)} has an id between {first} and {last}",
        fix="choose another jail_uid_base",
        why="a machine's process would run as that user",
        level="fail",
    )


def _deadlines(settings: Settings) -> Check:
    """Report which deadlines of machines were close in the last days."""
    uses = read_deadline_uses(settings.paths.deadline_uses)
    if not uses:
        return Check("deadlines", "ok", "no machine has run here in the last days")
    shown = ", ".join(_describe(use) for use in uses[:_SHOWN_DEADLINES])
    if uses[0].share < _CLOSE:
        return Check("deadlines", "ok", f"the closest: {shown}")
    # Twice what was needed; deadlines other than the boot's grow from the default on.
    base = settings.boot_timeout_seconds
    if uses[0].name != "boot":
        base = max(base, DEFAULT_BOOT_SECONDS)
    seconds = math.ceil(base * 2 * uses[0].share / 10) * 10
    why = "a machine that exceeds one is ended, and its job is tried again"
    return Check("deadlines", "warn", f"close: {shown}", f"set boot_timeout_seconds to {seconds}", why)


def _describe(use: DeadlineUse) -> str:
    wait = _WAITS.get(use.name, use.name)
    if use.share >= 1:
        return f"{wait} exceeded {use.limit_seconds:g} s"
    return f"{wait} took {use.used_seconds:.1f} of {use.limit_seconds:g} s ({use.share:.0%})"


async def _choice(settings: Settings, image: Image) -> Check:
    try:
        choice = await HypervisorSelector(settings).choose(image)
    except BelljarError as error:
        return Check("hypervisor", "fail", error.message)
    message = f"{choice.hypervisor} with {choice.accelerator}: {choice.reason}"
    if choice.accelerator != "kvm":
        return Check("hypervisor", "warn", message, "", _TEN_TIMES)
    return Check("hypervisor", "ok", message)
