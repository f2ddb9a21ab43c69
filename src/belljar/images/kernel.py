"""The kernel: Debian's own package for cloud machines, its ELF image taken out of the bzImage, and its modules.

Firecracker and QEMU's PVH loader want the uncompressed ELF. Nothing is compiled, nothing is patched.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from belljar.images.tool import call
from belljar.model.errors import ImageBuildError

#: With 64 MB Debian's kernel panics, out of memory, before a program has started; a Python needs 80.
STOCK_KERNEL_MIN_MB = 96
_ELF = b"\x7fELF"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelFiles:
    """A kernel package, unpacked."""

    #: The package's version, such as 6.1.0-56-cloud-amd64.
    release: str
    elf: Path
    modules: Path


async def unpack_kernel(deb: Path, work: Path, log: Path) -> KernelFiles:
    """Unpack the package into `work` and extract its ELF. Raises ImageBuildError for a kernel of no known form."""
    tree = work / "kernel.d"
    await call(["dpkg-deb", "-x", str(deb), str(tree)], log=log, timeout_seconds=_TIMEOUT_SECONDS)
    images = sorted((tree / "boot").glob("vmlinu[xz]-*"))
    if len(images) != 1:
        raise ImageBuildError(f"{deb.name} holds {len(images)} kernels where one was expected")
    release = images[0].name.split("-", 1)[1]
    elf = work / "vmlinux"
    await extract_elf(images[0], elf, work, log)
    modules = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir())
    return KernelFiles(release=release, elf=elf, modules=modules / release)


async def extract_elf(bzimage: Path, elf: Path, work: Path, log: Path) -> None:
    """Write the kernel's ELF image to `elf`.

    The x86 boot protocol says where the compressed payload lies (Documentation/arch/x86/boot.rst: setup_sects at 0x1f1,
    payload_offset at 0x248, payload_length at 0x24c). Raises ImageBuildError.
    """
    data = bzimage.read_bytes()
    payload = data if data.startswith(_ELF) else _payload(data, bzimage.name)
    await _decompress(payload, elf, work, log)
    with elf.open("rb") as file:
        if file.read(4) != _ELF:
            raise ImageBuildError(f"what {bzimage.name} holds is no ELF image")


def _payload(data: bytes, name: str) -> bytes:
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS":
        raise ImageBuildError(f"{name} is no bzImage")
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length == 0 or start + length > len(data):
        raise ImageBuildError(f"{name} says that its payload lies outside it")
    return data[start : start + length]


def _unxz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO).decompress(data)


#: Magic bytes → how the payload is decompressed: by the standard library, or by a program that reads standard input.
#: The last four bytes of a payload are the uncompressed size, which not every decompressor likes.
_LIBRARY: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": lambda data: gzip.decompress(data[:-4]) if _has_size(data) else gzip.decompress(data),
    b"\xfd7zXZ\0": _unxz,
    b"\x5d\0\0": _unxz,
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data),
}
_PROGRAMS: dict[bytes, tuple[list[str], bool]] = {
    b"\x02\x21\x4c\x18": (["lz4", "-d", "-c"], True),
    b"\x28\xb5\x2f\xfd": (["zstd", "-d", "-c"], True),
}


def _has_size(data: bytes) -> bool:
    """Whether a gzip payload has the size appended once more: gzip ends with it already."""
    return data[-4:] == data[-8:-4]


async def _decompress(payload: bytes, out: Path, work: Path, log: Path) -> None:
    if payload.startswith(_ELF):
        out.write_bytes(payload)
        return
    for magic, decompress in _LIBRARY.items():
        if payload.startswith(magic):
            try:
                out.write_bytes(decompress(payload))
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise ImageBuildError(f"the kernel cannot be decompressed: {error}") from None
            return
    for magic, (argv, sized) in _PROGRAMS.items():
        if payload.startswith(magic):
            packed = work / "payload"
            packed.write_bytes(payload[:-4] if sized else payload)
            await call(argv, log=log, timeout_seconds=_TIMEOUT_SECONDS, stdin=packed, stdout=out)
            packed.unlink()
            return
    raise ImageBuildError(f"the kernel is compressed in a way that belljar does not know ({payload[:6].hex()})")
