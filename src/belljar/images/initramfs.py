"""Build the initramfs: the agent as /init, the modules and prefork programs that it loads, and its mount points.

The format is newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed because the kernel
unpacks it faster than it decompresses. The same content gives the same bytes.
"""

from __future__ import annotations

import io
import lzma
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import ImageBuildError

#: The modules for the virtual devices and the filesystems of a machine, loaded before its root filesystem is mounted.
MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
)
FOLDERS = ("cgroup", "dev", "modules", "newroot", "prefork", "proc", "rom", "rw", "sys")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in the archive."""

    name: str
    mode: int
    data: bytes = b""


def build_initramfs(agent: Path, modules: Path | None, prefork: Mapping[str, bytes]) -> bytes:
    """Return the archive of the agent's executable, a kernel's modules and the prefork programs, name → text.

    `modules` is the kernel's modules folder, None for a kernel with everything built in. Raises ImageBuildError.
    """
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    entries.append(Entry("init", stat.S_IFREG | 0o755, agent.read_bytes()))
    ordered = module_order(modules, MODULES) if modules else []
    for number, path in enumerate(ordered, start=10):
        name = f"modules/{number}-{module_name(path)}.ko"
        entries.append(Entry(name, stat.S_IFREG | 0o644, read_module(path)))
    for program, text in prefork.items():
        entries.append(Entry(f"prefork/{program}", stat.S_IFREG | 0o644, text))
    return cpio(entries)


def module_name(path: Path) -> str:
    """Return a module's name as in modinfo: virtio_blk for virtio-blk.ko.xz."""
    return path.name.split(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return a module's ELF, decompressed. Raises ImageBuildError for an unknown compression."""
    data = path.read_bytes()
    if path.name.endswith(".xz"):
        return lzma.decompress(data)
    if not data.startswith(b"\x7fELF"):
        raise ImageBuildError(f"the module {path.name} has an unknown compression (known: xz)")
    return data


def _depends(path: Path) -> list[str]:
    """Return the names of a module's dependencies, from its .modinfo section."""
    for field in read_module(path).split(b"\0"):
        if field.startswith(b"depends="):
            return [name.decode().replace("-", "_") for name in field[8:].split(b",") if name]
    return []


def module_order(modules: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of modules and of their dependencies, in load order, without the built-in ones.

    Raises ImageBuildError for a module that the kernel has neither as a file nor built in.
    """
    files = {module_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    builtin = {module_name(Path(line)) for line in (modules / "modules.builtin").read_text().split()}
    order: list[Path] = []

    def visit(name: str) -> None:
        if name in builtin:
            return
        if name not in files:
            raise ImageBuildError(f"the kernel in {modules.name} has no module {name}")
        if files[name] in order:
            return
        for dependency in _depends(files[name]):
            visit(dependency)
        order.append(files[name])

    for name in names:
        visit(name)
    return order


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
