"""Finds the hypervisor's process in a jail, and checks what it may do and see."""

from __future__ import annotations

import os
from pathlib import Path

from belljar.settings import Settings


def check_confinement(settings: Settings) -> None:
    """Check the user, the privileges, the namespaces and the root directory of the only jailed process."""
    (root,) = settings.data_dir.glob("run/jails/*/*/root")
    process = inhabitant(root)
    status = (process / "status").read_text()
    uid = settings.jail_uid_base
    assert int(status_field(status, "Uid").split()[1]) in range(uid, uid + settings.jail_uid_count)
    assert status_field(status, "Uid").split() == status_field(status, "Gid").split()
    assert status_field(status, "Groups") == ""
    assert int(status_field(status, "CapEff"), 16) == 0
    assert len(status_field(status, "NSpid").split()) > 1
    assert (process / "ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
    inside = os.listdir(process / "root")
    assert "root.img" in inside and "proc" not in inside and "work" not in inside


def inhabitant(root: Path) -> Path:
    """The /proc folder of the hypervisor's process in a jail, the first of those whose root directory that is."""
    wanted = root.stat()
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if os.path.samestat((process / "root").stat(), wanted):
                    found.append(process)
            except OSError:
                continue
    return min(found, key=lambda process: int(process.name))


def status_field(status: str, name: str) -> str:
    return next(line.partition(":")[2].strip() for line in status.splitlines() if line.startswith(f"{name}:"))
