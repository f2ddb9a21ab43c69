"""Builds the command lines that confine Firecracker.

As root, Firecracker's jailer confines it: a root directory that holds only the machine's files, a user id of its own,
the slot's network namespace, limits. bubblewrap runs the jailer and adds what it lacks: a PID namespace that ends the
machine with bubblewrap (also when belljar is killed), an exit code to wait for (the jailer's --new-pid-ns provides
neither), and read-only mounts that need no removal. As another user, bubblewrap alone confines it with every namespace,
as it does QEMU. Firecracker's own seccomp filters apply in both cases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from belljar.node.machines.firecracker.folder import Folder
from belljar.node.machines.firecracker.program import Programs
from belljar.node.machines.host import jail
from belljar.node.machines.host.jail import require_tool

_MAX_FILES = 256
#: The folder's path for a process that is not in the jailer's chroot.
_INSIDE = "/machine"


def jailed_command(
    programs: Programs,
    folder: Folder,
    *,
    base: Path,
    machine_id: str,
    namespace: Path | None,
    file_bytes: int,
    arguments: Sequence[str],
) -> list[str]:
    """Return the command line with the jailer, for root. `file_bytes` limits each file that the process writes."""
    assert programs.jailer is not None and folder.uid is not None
    argv = [require_tool("bwrap", "bubblewrap"), "--unshare-pid", "--die-with-parent", "--new-session"]
    argv += ["--cap-add", "ALL", "--dev-bind", "/", "/"]
    for name, source in folder.bound.items():
        argv += ["--ro-bind", str(source), str(folder.path / name)]
    argv += ["--", str(programs.jailer), "--id", machine_id, "--exec-file", str(programs.firecracker)]
    argv += ["--uid", str(folder.uid), "--gid", str(folder.uid), "--chroot-base-dir", str(base)]
    argv += ["--resource-limit", f"fsize={file_bytes}", "--resource-limit", f"no-file={_MAX_FILES}"]
    if namespace is not None:
        argv += ["--netns", str(namespace)]
    return [*argv, "--", *arguments]


def wrapped_command(
    programs: Programs, folder: Folder, *, machine_id: str, kvm: Path, arguments: Sequence[str]
) -> list[str]:
    """Return the command line with bubblewrap alone, for any user."""
    argv = [require_tool("bwrap", "bubblewrap"), "--unshare-all", "--unshare-user", "--die-with-parent"]
    argv += ["--new-session", "--clearenv", "--cap-drop", "ALL", "--dev", "/dev", "--dev-bind", str(kvm), "/dev/kvm"]
    argv += ["--ro-bind", str(programs.firecracker), "/firecracker", "--bind", str(folder.path), _INSIDE]
    for name, source in folder.bound.items():
        argv += ["--ro-bind", str(source), f"{_INSIDE}/{name}"]
    return [*argv, "--chdir", _INSIDE, "--", "/firecracker", "--id", machine_id, *arguments]


def with_advice(error: str) -> str:
    """Return an error of Firecracker or its jailer, followed by what an operator can do about it, if anything."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, error, re.IGNORECASE):
            return f"{error}; {advice}"
    return jail.with_advice(error)


_ADVICE = (
    (
        r"creating KVM object.*(No such file|ENOENT|os error 2\)|No such device|ENXIO|os error 6\)|os error 19\))",
        "this host has no KVM: load the module kvm_intel or kvm_amd, or set hypervisor to qemu",
    ),
    (
        r"creating KVM object.*(Permission denied|EACCES|os error 13\))",
        "/dev/kvm may not be opened: join the group kvm; as root, the data folder must not be mounted nodev",
    ),
    (r"Failed to create .*mknod", "device nodes cannot be made in the data folder: this needs root with CAP_MKNOD"),
    (r"network namespace: netns", "the machine's network namespace does not exist"),
    (r"tap device|TUN/TAP", "the machine's TAP device does not exist or is in use"),
    (r"Exec into Firecracker|exec into Firecracker", "the jailer needs a Firecracker that is linked statically"),
)
