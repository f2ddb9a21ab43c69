"""How Firecracker is shut in: the command line from the shell that joins the cgroups to Firecracker's own arguments.

As root, by Firecracker's jailer: a root directory with nothing but the machine's files, a user id of the machine's own,
the slot's network namespace, limits. bubblewrap stands around it for what the jailer leaves to its caller: a PID
namespace that ends the machine with it (also when belljar is killed), an exit code that can be waited for (the jailer's
--new-pid-ns gives neither), and read-only mounts that nobody has to take away. As anybody else, by bubblewrap alone,
with every namespace, as QEMU is. Firecracker's own seccomp filters hold in both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from belljar.node.machines.firecracker.folder import Folder
from belljar.node.machines.firecracker.program import Programs
from belljar.node.machines.host import jail
from belljar.node.machines.host.jail import need

_MAX_FILES = 256
#: Where the folder is for a process that is not in the jailer's chroot.
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
    """By the jailer, as root. `file_bytes` bounds every file that the process writes."""
    assert programs.jailer is not None and folder.uid is not None
    argv = [need("bwrap", "bubblewrap"), "--unshare-pid", "--die-with-parent", "--new-session", "--cap-add", "ALL"]
    argv += ["--dev-bind", "/", "/"]
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
    """By bubblewrap alone, as anybody."""
    argv = [need("bwrap", "bubblewrap"), "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session"]
    argv += ["--clearenv", "--cap-drop", "ALL", "--dev", "/dev", "--dev-bind", str(kvm), "/dev/kvm"]
    argv += ["--ro-bind", str(programs.firecracker), "/firecracker", "--bind", str(folder.path), _INSIDE]
    for name, source in folder.bound.items():
        argv += ["--ro-bind", str(source), f"{_INSIDE}/{name}"]
    return [*argv, "--chdir", _INSIDE, "--", "/firecracker", "--id", machine_id, *arguments]


def explain(words: str) -> str:
    """Firecracker's or the jailer's last words, with what to do about those that an operator can mend."""
    for pattern, advice in _ADVICE:
        if re.search(pattern, words, re.IGNORECASE):
            return f"{words}; {advice}"
    return jail.explain(words)


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
    (r"network namespace: netns", "the machine's network namespace is gone"),
    (r"tap device|TUN/TAP", "the machine's TAP device is gone or in use"),
    (r"Exec into Firecracker|exec into Firecracker", "the jailer needs a Firecracker that is linked statically"),
)
