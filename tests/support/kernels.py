"""Kernels for tests: small files with the headers of one, and the package of Debian's kernel that images have."""

from __future__ import annotations

import lzma
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from belljar.images.kernel_modules import MODULES, KernelModules

X86_64, AARCH64, X86, PPC64 = 62, 183, 3, 21
BANNER = b"Linux version 6.1.0-test (builder@host) (gcc 12) #1 SMP\0"
PVH_NOTE = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x1000000)
#: What a kernel with everything built in contains.
NAMES = (
    b"\0".join(
        [
            b"Unpacking initramfs...\n",
            b"devtmpfs",
            b"devpts",
            b"virtio-mmio",
            b"virtio_blk",
            b"virtio_net",
            b"erofs",
            b"overlayfs: x",
            b"ext4",
            b"oom.group",
            b"cgroup: fork rejected by pids controller in ",
            b"pid_for_children",
            b"actions_avail",
            b"Interpreter enabled",
            b"virtio-ports",
            b"vmw_vsock_virtio_transport",
        ]
    )
    + b"\0"
)


def elf(
    content: bytes = BANNER + NAMES,
    *,
    note: bytes = PVH_NOTE,
    machine: int = X86_64,
    kind: int = 2,
    bits: int = 2,
    order: int = 1,
    interpreter: bool = False,
    symbols: bytes = b"",
) -> bytes:
    """Return an ELF executable of one segment with `content` and one of notes; `symbols` follow them."""
    segments = [(1, content), (4, note), *([(3, b"/lib/ld.so\0")] if interpreter else [])]
    at = 64 + 56 * len(segments)
    table, body = b"", b""
    for segment_kind, data in segments:
        table += struct.pack("<IIQQQQQQ", segment_kind, 5, at + len(body), 0, 0x1000000, len(data), len(data), 4096)
        body += data
    ident = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    sections = at + len(body) if symbols else 0
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, kind, machine, 1, 0x1000000, 64, sections, 0, 64, 56, len(segments), 64, 1, 0
    )
    return head + table + body + symbols


def bzimage(payload: bytes, *, setup_sectors: int = 3, offset: int = 17, length: int | None = None) -> bytes:
    """Return a bzImage of the x86 boot protocol: boot sector, setup, code, and the payload at the declared offset."""
    head = bytearray((setup_sectors + 1) * 512 if setup_sectors else 5 * 512)
    head[0x1F1] = setup_sectors
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, offset, len(payload) if length is None else length)
    return bytes(head) + b"\xcc" * offset + payload + b"\xcc" * 100


class ModuleFolder:
    """A folder of modules as a kernel package has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "6.1.0-test"
        (self.folder / "kernel/drivers").mkdir(parents=True)
        (self.folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/lib/built-in.ko\n")

    def add(
        self,
        name: str,
        *needs: str,
        compressed: bool = False,
        data: bytes = b"\x7fELF",
        softdep: str = "",
        release: str = "6.1.0-test",
    ) -> Path:
        """Write a module that depends on others, and return its file."""
        data += b"\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"
        data += f"vermagic={release} SMP mod_unload \0".encode() + (f"softdep={softdep}\0".encode() if softdep else b"")
        path = self.folder / f"kernel/drivers/{name}.ko{'.xz' if compressed else ''}"
        path.write_bytes(lzma.compress(data) if compressed else data)
        return path

    def modules(self, *names: str) -> KernelModules:
        """Return the modules to load, by default those of every machine."""
        return KernelModules(release="6.1.0-test", folder=self.folder, names=names or MODULES)

    def order(self, *names: str) -> list[str]:
        """Return the names of the files that are loaded, in order."""
        return [path.name.split(".")[0] for path in self.modules(*names).order()]


@dataclass(frozen=True, slots=True)
class DebianKernel:
    """The unpacked package of Debian's kernel."""

    vmlinuz: Path
    release: str
    modules: Path
    configuration: str


def debian_kernel(data_dir: Path, folder: Path) -> DebianKernel:
    """Unpack the kernel that images in `data_dir` were built with from its build cache; no configuration beside it."""
    (package,) = data_dir.glob("cache/apt/*/debs/linux-image-*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    (vmlinuz,) = folder.glob("boot/vmlinuz-*")
    release = vmlinuz.name.removeprefix("vmlinuz-")
    beside = vmlinuz.with_name(f"config-{release}")
    configuration = beside.read_text()
    beside.unlink()
    (modules,) = folder.glob(f"**/lib/modules/{release}")
    return DebianKernel(vmlinuz, release, modules, configuration)
