"""The jail around a hypervisor: bubblewrap with every namespace, an unprivileged user, and a minimal root directory.

As root, belljar runs each machine with a user id of its own; as another user, with that user's id. Either way the
process sees no network, no other process, and no file except the hypervisor's own and the descriptors that it inherits.
The jail holds a guest that has broken out of its hypervisor.
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
from belljar.node.machines.host.descriptors import check_descriptors
from belljar.settings.machines import MachineSettings
from belljar.system.core_dumps import are_forbidden
from belljar.system.executables import find_executable
from belljar.system.file_locks import try_lock

_UID_LOCKS = Path("/run/belljar/uids")
_KVM = Path("/dev/kvm")
#: Device nodes of machines that run with a user id of their own. Some hosts allow opening nodes only below /dev.
KVM_NODES = Path("/dev/belljar")
_MAX_FILES = 256
#: Folders that hold only files of packages, readable by everyone.
_SYSTEM_LIBRARIES = re.compile(r"(/usr)?/lib(32|64|/[a-z0-9_]+-linux-gnu[a-z0-9]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """An executable and every file that it opens by name."""

    executable: Path
    #: Files and folders, bound read-only at the same places.
    files: tuple[str, ...]


@functools.cache
def find_program(name: str, *folders: str) -> Program:
    """Return a program on PATH with `folders` and the places of its shared libraries (ldd). Raises MissingTool."""
    path = find_executable(name)
    if path is None:
        raise MissingTool(f"{name} not found; install with: apt-get install qemu-system-x86")
    executable = Path(path).resolve()
    listing = subprocess.run(["ldd", str(executable)], capture_output=True, text=True, check=False, timeout=30).stdout
    libraries = re.findall(r"(/\S+) \(0x", listing)
    present = [folder for folder in folders if Path(folder).exists()]
    return Program(executable=executable, files=(str(executable), *_outermost([*map(_bind_path, libraries), *present])))


def _bind_path(library: str) -> str:
    """Return the system folder of a library, else the library itself: each path costs bubblewrap 0.2 ms."""
    folder = str(Path(library).parent)
    return folder if _SYSTEM_LIBRARIES.fullmatch(folder) else library


def _outermost(paths: list[str]) -> list[str]:
    """Return the paths without duplicates and without paths below another of them."""
    once = list(dict.fromkeys(paths))
    return [path for path in once if not any(other in once for other in map(str, Path(path).parents))]


@contextlib.contextmanager
def machine_uid(settings: MachineSettings) -> Iterator[int | None]:
    """Reserve a user id that no other machine on this host has during the block; None when belljar is not root.

    Raises HostError when all are in use.
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
    """Provide a device node for KVM that the machine's user may open: the host's, else one made for this machine.

    Raises HostError when this host has no KVM, or none that may be used.
    """
    try:
        status = _KVM.stat()
    except FileNotFoundError:
        raise HostError("this host has no /dev/kvm; set accelerator to tcg or auto") from None
    if uid is None or status.st_mode & 0o006 == 0o006:
        if not os.access(_KVM, os.R_OK | os.W_OK):
            raise HostError(
                "this user may not open /dev/kvm; add the user to the group kvm, or set accelerator to tcg or auto"
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


#: Joins the cgroups, sets the rlimits, and executes the jail. $1 is the number of cgroup files that follow, then come
#: those files, then the command.
_ENTER = """
count=$1; shift
while [ "$count" -gt 0 ]; do echo $$ >"$1" || exit 121; shift; count=$((count - 1)); done
[ -n "$BELLJAR_NO_CORES" ] || ulimit -c 0
ulimit -n "$BELLJAR_FILES"; [ -z "$BELLJAR_ADDRESS_KB" ] || ulimit -v "$BELLJAR_ADDRESS_KB"
exec "$@"
"""

#: What the exit codes of that shell mean.
EXIT_CODES = {
    121: "its jail could not join the machine's cgroup",
    126: "the program of its jail cannot be executed",
    127: "the program of its jail was not found",
}


def cgroup_join_command(group: Group) -> list[str]:
    """Return the start of a command line: a shell that joins the cgroups, sets rlimits and executes what follows.

    It reads the rlimits from its environment (`limits_environment`).
    """
    return ["/bin/sh", "-c", _ENTER, "belljar-jail", str(len(group.procs)), *map(str, group.procs)]


def limits_environment(address_bytes: int | None) -> dict[str, str]:
    """Return the environment of `cgroup_join_command`'s shell; the hypervisor never sees it."""
    address = "" if address_bytes is None else str(address_bytes // 1024)
    return {
        "BELLJAR_FILES": str(_MAX_FILES),
        "BELLJAR_ADDRESS_KB": address,
        # The limit that is inherited is stricter than the shell's 0.
        "BELLJAR_NO_CORES": "1" if are_forbidden() else "",
        "PATH": "/usr/bin:/bin",
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Jail:
    """The confinement of one machine's hypervisor."""

    uid: int | None
    group: Group
    #: Limit of the address space where no cgroup limits the memory; None where one does.
    address_bytes: int | None
    #: A device node for /dev/kvm, or None.
    kvm: Path | None = None

    def command(self, program: Program, arguments: Sequence[str]) -> list[str]:
        """Return the whole command line, from the shell that joins the cgroups to the hypervisor's own arguments."""
        argv = cgroup_join_command(self.group)
        if self.uid is not None:
            ids = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
            argv += [require_tool("setpriv", "util-linux"), *ids, "--inh-caps=-all", "--bounding-set=-all"]
        return [*argv, *self._bubblewrap(program), str(program.executable), *arguments]

    def _bubblewrap(self, program: Program) -> list[str]:
        argv = [require_tool("bwrap", "bubblewrap"), "--unshare-all", "--unshare-user"]
        argv += ["--die-with-parent", "--new-session"]
        argv += ["--clearenv", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
        argv += ["--tmpfs", "/tmp"]  # noqa: S108 (the jail's own)
        for file in program.files:
            argv += ["--ro-bind", file, file]
        if self.kvm is not None:
            argv += ["--dev-bind", str(self.kvm), "/dev/kvm"]
        return [*argv, "--chdir", "/", "--"]

    def environment(self) -> dict[str, str]:
        """Return the environment of the command's shell."""
        return limits_environment(self.address_bytes)


def kill_tree(pid: int) -> None:
    """Kill the jail whose outer process is `pid`, at any point of its start. The process must not be reaped yet.

    bubblewrap ties its inner process to the outer one only at the end of its setup (PR_SET_PDEATHSIG in bubblewrap.c's
    do_init). Killing the outer process earlier leaves the inner one waiting for ever. So the outer process is stopped
    first, then its children are killed, which ends everything in their PID namespace (pid_namespaces(7)), then itself.
    """
    try:
        os.kill(pid, signal.SIGSTOP)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended, or the kernel lacks CONFIG_PROC_CHILDREN
        children = []
    for each in [*map(int, children), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


async def spawn(command: Sequence[str], **options: Any) -> asyncio.subprocess.Process:
    """Start a jail's process like `asyncio.create_subprocess_exec`, safely cancellable at any moment.

    asyncio kills a process whose start is cancelled and then waits for its pipes to close. With a bubblewrap that was
    killed during its setup (see `kill_tree`) it waits for ever. So the start is finished, and the process killed then.
    """
    check_descriptors()
    start = asyncio.create_task(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(start)
    except asyncio.CancelledError:
        kill = asyncio.create_task(_kill_started(start))
        while not kill.done():
            with contextlib.suppress(asyncio.CancelledError):  # cancelled again; the kill takes milliseconds
                await asyncio.wait({kill})
        raise


async def _kill_started(start: asyncio.Task[asyncio.subprocess.Process]) -> None:
    await asyncio.wait({start})
    if start.exception() is None:
        process = start.result()
        kill_tree(process.pid)
        await process.wait()


@functools.cache
def require_tool(tool: str, package: str) -> str:
    """Return the path of a program that `package` installs. Raises MissingTool."""
    path = find_executable(tool)
    if path is None:
        raise MissingTool(f"{tool} not found; install with: apt-get install {package}")
    return path


def with_advice(error: str) -> str:
    """Return an error of bubblewrap, followed by what an operator can do about it, if anything."""
    if "No permissions to create" in error or "setting up uid map" in error or "namespace" in error.lower():
        return (
            f"{error}; the jail needs user namespaces: as root, sysctl kernel.unprivileged_userns_clone=1 "
            "user.max_user_namespaces=10000 (and kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu)"
        )
    return error
