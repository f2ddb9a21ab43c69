"""Build the initramfs: the agent as /init, the modules and prefork programs that it loads, and its mount points.

The format is newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed because the kernel
unpacks it faster than it decompresses. The same content gives the same bytes.
"""

from __future__ import annotations

import io
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from belljar.images.kernel_modules import KernelModules, module_name, read_module

FOLDERS = ("cgroup", "dev", "modules", "newroot", "prefork", "proc", "rom", "rw", "sys")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in the archive."""

    name: str
    mode: int
    data: bytes = b""


def build_initramfs(agent: Path, modules: KernelModules | None, prefork: Mapping[str, bytes]) -> bytes:
    """Return the archive of the agent's executable, a kernel's modules and the prefork programs, name → text.

    `modules` is None for a kernel with everything built in. Raises ImageBuildError.
    """
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    entries.append(Entry("init", stat.S_IFREG | 0o755, agent.read_bytes()))
    for number, path in enumerate(modules.order() if modules else [], start=10):
        name = f"modules/{number}-{module_name(path)}.ko"
        entries.append(Entry(name, stat.S_IFREG | 0o644, read_module(path)))
    for program, text in prefork.items():
        entries.append(Entry(f"prefork/{program}", stat.S_IFREG | 0o644, text))
    return cpio(entries)


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return a newc archive with all times, owners and devices zero, and inodes counted from 1."""
    out = io.BytesIO()

    def add(inode: int, entry: Entry) -> None:
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.write(b"\0" * (-out.tell() % 4))
        out.write(entry.data)
        out.write(b"\0" * (-out.tell() % 4))

    for inode, entry in enumerate(sorted(entries, key=lambda each: each.name), start=1):
        add(inode, entry)
    add(0, Entry("TRAILER!!!", 0))
    return out.getvalue()
