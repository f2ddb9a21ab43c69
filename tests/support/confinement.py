"""What a hypervisor's process may do and see, read from the host's kernel: the same for every way to start one."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from belljar.model.image import Image
from belljar.settings import Settings


def check_privileges(pid: int) -> None:
    status = dict(re.findall(r"^(\w+):[ \t]*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M))
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    uids = set(map(int, status["Uid"].split()))
    if os.geteuid() == 0:
        assert len(uids) == 1 and min(uids) >= Settings().jail_uid_base
        assert status["Groups"].split() == []
    for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name


def check_files(pid: int, image: Image) -> None:
    """Check that it sees only the program's files by name, and only inherited descriptors."""
    root = Path(f"/proc/{pid}/root")
    assert {path.name for path in root.iterdir()} <= {"dev", "lib", "lib64", "proc", "tmp", "usr"}
    assert not (root / "usr/bin/sh").exists() and not (root / "usr/bin/python3").exists()
    assert not (root / "dev/kvm").exists()
    inherited = {
        (about.st_dev, about.st_ino) for about in (path.stat() for path in (image.kernel, image.initramfs, image.root))
    }
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target, about = os.readlink(entry), entry.stat()
        is_inherited = (about.st_dev, about.st_ino) in inherited  # by another name, on a mount of its own
        if target.startswith("/") and not is_inherited:
            own = about.st_nlink == 0  # a disk or memory without a name, which no other machine has
            assert own or target == "/dev/null" or stat.S_ISCHR(about.st_mode), target
        flags = int(re.findall(r"flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text())[0], 8)
        assert not is_inherited or flags & os.O_ACCMODE == os.O_RDONLY, target


def check_network(pid: int) -> None:
    devices = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
