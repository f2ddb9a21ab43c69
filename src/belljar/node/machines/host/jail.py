"""The jail around a hypervisor: bubblewrap with every namespace, an unprivileged user, a root with only what it needs.

As root each machine runs as a user id of its own; anyone else's machines run as themselves. Either way the process sees
no network, no other process, no file but the hypervisor's own and the descriptors that it was handed. A job that breaks
out of the emulator finds itself here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar.model.errors import HostError, MissingTool
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.faults import check_descriptors
from belljar.settings.machines import MachineSettings
from belljar.system.executables import find_executable
from belljar.system.file_locks import try_lock

_UID_LOCKS = Path("/run/belljar/uids")
_KVM = Path("/dev/kvm")
#: Device nodes of machines that run as a user of their own. Only below /dev may nodes be opened on every host.
KVM_NODES = Path("/dev/belljar")
_MAX_FILES = 256
#: Folders with nothing in them but what packages put there for all to read.
_SYSTEM_LIBRARIES = re.compile(r"(/usr)?/lib(32|64|/[a-z0-9_]+-linux-gnu[a-z0-9]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """An executable and everything that it opens by name."""

    executable: Path
    #: Files and folders, bound read-only at the same places.
    files: tuple[str, ...]


@functools.cache
def program(name: str, *folders: str) -> Program:
    """A program on PATH, `folders`, and where its shared libraries are as ldd names them. Raises MissingTool."""
    found = find_executable(name)
    if found is None:
        raise MissingTool(f"{name} not found; install with: apt-get install qemu-system-x86")
    executable = Path(found).resolve()
    listing = subprocess.run(["ldd", str(executable)], capture_output=True, text=True, check=False, timeout=30).stdout
    libraries = re.findall(r"(/\S+) \(0x", listing)
    present = [folder for folder in folders if Path(folder).exists()]
    return Program(executable=executable, files=(str(executable), *_outermost([*map(_place, libraries), *present])))


def _place(library: str) -> str:
    """The system's folder of a library, else the library: bubblewrap takes a fifth of a millisecond for each place."""
    folder = str(Path(library).parent)
    return folder if _SYSTEM_LIBRARIES.fullmatch(folder) else library


def _outermost(paths: list[str]) -> list[str]:
    """The paths, each once, without those in a folder that is another of them."""
    once = list(dict.fromkeys(paths))
    return [path for path in once if not any(other in once for other in map(str, Path(path).parents))]


@contextlib.contextmanager
def machine_uid(settings: MachineSettings) -> Iterator[int | None]:
    """A user id that no other machine on this host has while the block lasts; None when belljar is not root.

    Raises HostError when all are taken.
    """
    if os.geteuid() != 0:
        yield None
        return
    _UID_LOCKS.mkdir(parents=True, exist_ok=True, mode=0o700)
    for uid in range(settings.jail_uid_base, settings.jail_uid_base + settings.jail_uid_count):
        with try_lock(_UID_LOCKS / str(uid)) as is_locked:
            if is_locked:
                yield uid
                return
    raise HostError(
        f"all {settings.jail_uid_count} user ids for machines are taken; raise jail_uid_count or run fewer jobs at once"
    )


@contextlib.contextmanager
def kvm_node(machine_id: str, uid: int | None) -> Iterator[Path]:
    """A device node for KVM that the machine's user may open: the host's own, else one made for this machine.

    Raises HostError when there is none.
    """
    try:
        status = _KVM.stat()
    except FileNotFoundError:
        raise HostError("this host has no /dev/kvm; set accelerator to tcg or auto") from None
    if uid is None or status.st_mode & 0o006 == 0o006:
        if not os.access(_KVM, os.R_OK | os.W_OK):
            raise HostError(
                "this user may not open /dev/kvm; add it to the group kvm, or set accelerator to tcg or auto"
            )
        yield _KVM
        return
    node = KVM_NODES / machine_id
    KVM_NODES.mkdir(mode=0o755, exist_ok=True)
    try:
        os.mknod(node, stat.S_IFCHR | 0o600, status.st_rdev)
        os.chown(node, uid, uid)
    except OSError as error:
        raise HostError(f"cannot make a device node for KVM: {error.strerror}; set accelerator to tcg") from error
    try:
        yield node
    finally:
        node.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            KVM_NODES.rmdir()


#: Joins the cgroups, sets the limits that no cgroup is needed for, and becomes the jail. $1: how many cgroup files
#: follow; then those; then the command.
_ENTER = """
count=$1; shift
while [ "$count" -gt 0 ]; do echo $$ >"$1" || exit 121; shift; count=$((count - 1)); done
ulimit -c 0; ulimit -n "$BELLJAR_FILES"; [ -z "$BELLJAR_ADDRESS_KB" ] || ulimit -v "$BELLJAR_ADDRESS_KB"
exec "$@"
"""


def joining(group: Group) -> list[str]:
    """The shell that joins the cgroups and sets the limits, to which the command to be executed is added.

    It is told the limits by its environment (`entering_environment`).
    """
    return ["/bin/sh", "-c", _ENTER, "belljar-jail", str(len(group.procs)), *map(str, group.procs)]


def entering_environment(address_bytes: int | None) -> dict[str, str]:
    """What that shell is told; nothing of it reaches the hypervisor."""
    address = "" if address_bytes is None else str(address_bytes // 1024)
    return {"BELLJAR_FILES": str(_MAX_FILES), "BELLJAR_ADDRESS_KB": address, "PATH": "/usr/bin:/bin"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Jail:
    """How one machine's hypervisor is shut in."""

    uid: int | None
    group: Group
    #: Bound on the address space where no cgroup bounds the memory; None where one does.
    address_bytes: int | None
    #: A device node for /dev/kvm, or None.
    kvm: Path | None = None

    def command(self, inside: Program, arguments: Sequence[str]) -> list[str]:
        """The whole command line, from the shell that joins the cgroups to the hypervisor's own arguments."""
        enter = joining(self.group)
        if self.uid is not None:
            ids = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
            enter += [need("setpriv", "util-linux"), *ids, "--inh-caps=-all", "--bounding-set=-all"]
        return [*enter, *self._bubblewrap(inside), str(inside.executable), *arguments]

    def _bubblewrap(self, inside: Program) -> list[str]:
        argv = [need("bwrap", "bubblewrap"), "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
        argv += ["--clearenv", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
        argv += ["--tmpfs", "/tmp"]  # noqa: S108 (the jail's own)
        for file in inside.files:
            argv += ["--ro-bind", file, file]
        if self.kvm is not None:
            argv += ["--dev-bind", str(self.kvm), "/dev/kvm"]
        return [*argv, "--chdir", "/", "--"]

    def environment(self) -> dict[str, str]:
        """What the entering shell is told."""
        return entering_environment(self.address_bytes)


def end(pid: int) -> None:
    """Kill the jail whose outer process this is, whatever point it has reached; it must not have been waited for yet.

    bubblewrap ties its inside to its outside only once it is set up (PR_SET_PDEATHSIG in bubblewrap.c's do_init): the
    outer process killed before that leaves the inner one waiting for it for ever. So it is halted first, and its
    children, with which everything in their PID namespace ends (pid_namespaces(7)), are killed before it.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # gone, or a kernel without CONFIG_PROC_CHILDREN
        children = []
    for each in [*map(int, children), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


async def spawn(command: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec` for a jail, which a cancellation does not break in the middle.

    asyncio kills what it was starting and then waits for its pipes to close: for ever, with a bubblewrap that was
    killed before it was set up (see `end`). So the start is let finish, and what was started ended properly.
    """
    check_descriptors()
    starting = asyncio.create_task(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        ending = asyncio.create_task(_end_started(starting))
        while not ending.done():
            with contextlib.suppress(asyncio.CancelledError):  # once more: it takes milliseconds
                await asyncio.wait({ending})
        raise


async def _end_started(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    await asyncio.wait({starting})
    if starting.exception() is None:
        process = starting.result()
        end(process.pid)
        await process.wait()


@functools.cache
def need(tool: str, package: str) -> str:
    """The path of a program. Raises MissingTool."""
    found = find_executable(tool)
    if found is None:
        raise MissingTool(f"{tool} not found; install with: apt-get install {package}")
    return found


def explain(words: str) -> str:
    """bubblewrap's last words, with what to do about those that an operator can do something about."""
    if "No permissions to create" in words or "setting up uid map" in words or "namespace" in words.lower():
        return (
            f"{words}; the jail needs user namespaces: as root, sysctl kernel.unprivileged_userns_clone=1 "
            "user.max_user_namespaces=10000 (and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
        )
    return words
