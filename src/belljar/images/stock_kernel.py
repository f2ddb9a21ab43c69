"""The stock kernel: Debian's package for cloud machines, with the ELF image extracted from its bzImage.

Firecracker and QEMU's PVH loader need the uncompressed ELF image. Nothing is compiled or patched.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from belljar.images.build_context import BuildContext
from belljar.images.host_tools import run_tool
from belljar.images.kernel_source import KernelModules
from belljar.model.errors import ImageBuildError
from belljar.model.image import Part

_PACKAGE = "linux-image-cloud-{}"
_DEPENDENCY = r"linux-image-\d.*"
_ELF = b"\x7fELF"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelFiles:
    """The files of an unpacked kernel package."""

    elf: Path
    modules: KernelModules


class StockKernel:
    """Debian's kernel for the suite of the settings, the newest one whenever it is built."""

    #: With 64 MiB the kernel panics, out of memory, before the first program starts; Python needs 80.
    min_memory_mb = 96

    def __init__(self, context: BuildContext) -> None:
        self._context = context
        self._files: KernelFiles | None = None

    def inputs(self) -> list[str]:
        """Return Debian's suite and the architecture."""
        return [self._context.settings.debian_suite, self._context.architecture]

    async def is_current(self, part: Part) -> bool:
        """Return False: unpacking the newest package again takes little time."""
        return False

    async def build(self, out: Path) -> str:
        """Fetch and unpack the package. Raises MissingTool, DiskFull, ImageBuildError."""
        files = await self._unpacked()
        shutil.copyfile(files.elf, out)
        return f"Debian linux {files.modules.release}"

    async def modules(self) -> KernelModules:
        """Return the modules of the package, which is fetched when necessary. Raises as `build`."""
        return (await self._unpacked()).modules

    async def _unpacked(self) -> KernelFiles:
        if self._files is None:
            archive = await self._context.debian_archive()
            package = await archive.dependency(_PACKAGE.format(archive.architecture), _DEPENDENCY)
            self._context.progress.step(f"fetching the kernel ({package})")
            deb = await archive.download(package)
            self._files = await unpack_kernel(deb, self._context.work, self._context.log)
        return self._files


async def unpack_kernel(deb: Path, work: Path, log: Path) -> KernelFiles:
    """Unpack a kernel package into `work` and extract its ELF image. Raises ImageBuildError for an unknown format."""
    tree = work / "kernel.d"
    await run_tool(["dpkg-deb", "-x", str(deb), str(tree)], log=log, timeout_seconds=_TIMEOUT_SECONDS)
    images = sorted((tree / "boot").glob("vmlinu[xz]-*"))
    if len(images) != 1:
        raise ImageBuildError(f"{deb.name} has {len(images)} kernels, expected 1")
    release = images[0].name.split("-", 1)[1]
    elf = work / "vmlinux"
    await extract_elf(images[0], elf, work, log)
    modules = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir())
    return KernelFiles(elf=elf, modules=KernelModules(release=release, folder=modules / release))


async def extract_elf(bzimage: Path, elf: Path, work: Path, log: Path) -> None:
    """Write the ELF image in a bzImage to the file `elf`.

    The x86 boot protocol defines the place of the compressed payload (Documentation/arch/x86/boot.rst: setup_sects at
    0x1f1, payload_offset at 0x248, payload_length at 0x24c). Raises ImageBuildError.
    """
    data = bzimage.read_bytes()
    payload = data if data.startswith(_ELF) else _payload(data, bzimage.name)
    await _decompress(payload, elf, work, log)
    with elf.open("rb") as file:
        if file.read(4) != _ELF:
            raise ImageBuildError(f"the payload of {bzimage.name} is not an ELF image")


def _payload(data: bytes, name: str) -> bytes:
    if len(data) < 0x250 or data[0x202:0x206] != b"HdrS":
        raise ImageBuildError(f"{name} is not a bzImage")
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length == 0 or start + length > len(data):
        raise ImageBuildError(f"the payload of {name} is outside the file")
    return data[start : start + length]


def _unxz(data: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_AUTO).decompress(data)


#: Magic number → decompression by the standard library, or by a program that reads standard input. The last four bytes
#: of a payload are the uncompressed size, which some decompressors reject.
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
    """Return whether the size is appended to a gzip payload, which itself ends with it."""
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
                raise ImageBuildError(f"cannot decompress the kernel: {error}") from None
            return
    for magic, (argv, sized) in _PROGRAMS.items():
        if payload.startswith(magic):
            packed = work / "payload"
            packed.write_bytes(payload[:-4] if sized else payload)
            await run_tool(argv, log=log, timeout_seconds=_TIMEOUT_SECONDS, stdin=packed, stdout=out)
            packed.unlink()
            return
    raise ImageBuildError(f"the kernel has an unknown compression (magic number {payload[:6].hex()})")
