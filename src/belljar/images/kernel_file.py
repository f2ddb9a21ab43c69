"""Read a kernel from a file: an ELF image, or the ELF image in a bzImage.

Firecracker and QEMU's PVH loader need the ELF image. Nothing is compiled or patched.
"""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from belljar.images import kernel_elf
from belljar.images.host_tools import require_tools, run_tool
from belljar.model.errors import ImageBuildError

#: Bound on a file that is read, and on what is in it; a kernel with all its debug information is smaller.
MAX_BYTES = 1 << 30
_TIMEOUT_SECONDS = 600
#: Magic numbers of other files that people have at hand, by their offset.
_OTHER_FORMATS = (
    (0x38, b"ARM\x64", "a kernel for aarch64 (Image)"),
    (0x30, b"RISCV", "a kernel for riscv (Image)"),
    (0, b"\x27\x05\x19\x56", "a uImage"),
    (0, b"\xd0\x0d\xfe\xed", "a flattened image tree"),
    (0, b"!<arch>", "a package or a static library"),
    (0, b"070701", "an initramfs"),
)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}


def read_kernel_file(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a kernel's file after a look at its beginning.

    Raises ImageBuildError for anything that is neither an ELF image nor a bzImage.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a FIFO would wait for a writer
            raise ImageBuildError(f"{path} is not a file; give the kernel's vmlinux or bzImage")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > max_bytes:
                raise ImageBuildError(f"{path} has {status.st_size >> 20} MB; a kernel has at most {max_bytes >> 20}")
            _check_format(file.read(4096), str(path))
            file.seek(0)
            return file.read(max_bytes)
    except OSError as error:
        raise ImageBuildError(f"cannot read the kernel {path}: {error.strerror}") from None


def _check_format(start: bytes, name: str) -> None:
    if start.startswith(kernel_elf.MAGIC) or _is_bzimage(start):
        return
    expected = "give the kernel's vmlinux (ELF) or bzImage"
    for offset, magic, kind in _OTHER_FORMATS:
        if start[offset : offset + len(magic)] == magic:
            raise ImageBuildError(f"{name} is {kind}; {expected} for this host")
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise ImageBuildError(f"{name} is compressed with {kind}; decompress it first, and {expected}")
    if not start:
        raise ImageBuildError(f"{name} is empty; {expected}")
    kind = "text" if b"\0" not in start and start.isascii() else "of an unknown format"
    raise ImageBuildError(f"{name} is {kind}, not a bzImage and not an ELF image; {expected}")


def _is_bzimage(start: bytes) -> bool:
    return start[0x202:0x206] == b"HdrS"


async def extract_elf(data: bytes, name: str, work: Path, log: Path) -> bytes:
    """Return the ELF image in a bzImage, or the data itself when it is one. Raises ImageBuildError.

    The x86 boot protocol defines the place of the compressed payload (Documentation/arch/x86/boot.rst: setup_sects at
    0x1f1, payload_offset at 0x248, payload_length at 0x24c).
    """
    elf = data if data.startswith(kernel_elf.MAGIC) else await _decompress(_payload(data, name), name, work, log)
    if not elf.startswith(kernel_elf.MAGIC):
        raise ImageBuildError(f"the payload of {name} is not an ELF image")
    return elf


def _payload(data: bytes, name: str) -> bytes:
    if len(data) < 0x250 or not _is_bzimage(data):
        raise ImageBuildError(f"{name} is not a bzImage")
    setup_sectors = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    if length == 0 or start + length > len(data):
        raise ImageBuildError(
            f"the payload of {name} is outside the file: it has {len(data)} bytes, the payload ends at "
            f"{start + length}; it is cut off or damaged"
        )
    return data[start : start + length]


def _ungzip(data: bytes, limit: int) -> bytes:
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unpacked = unpacking.decompress(data, limit)
    if not unpacking.eof and len(unpacked) < limit:
        raise EOFError("it ends too early")
    return unpacked


def _unxz(data: bytes, limit: int) -> bytes:
    unpacking = lzma.LZMADecompressor(lzma.FORMAT_AUTO)
    return unpacking.decompress(data, limit)


def _unbzip2(data: bytes, limit: int) -> bytes:
    return bz2.BZ2Decompressor().decompress(data, limit)


#: Magic number → decompression by the standard library up to a limit, or by a program that reads standard input. The
#: last four bytes of a payload are the uncompressed size, which some decompressors reject.
_LIBRARY: dict[bytes, Callable[[bytes, int], bytes]] = {
    b"\x1f\x8b": _ungzip,
    b"\xfd7zXZ\0": _unxz,
    b"\x5d\0\0": _unxz,
    b"BZh": _unbzip2,
}
_PROGRAMS = {b"\x02\x21\x4c\x18": ["lz4", "-d", "-c"], b"\x28\xb5\x2f\xfd": ["zstd", "-d", "-c"]}


async def _decompress(payload: bytes, name: str, work: Path, log: Path) -> bytes:
    if payload.startswith(kernel_elf.MAGIC):
        return payload
    for magic, decompress in _LIBRARY.items():
        if payload.startswith(magic):
            try:
                return _within_bound(decompress(payload, MAX_BYTES + 1), name)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise ImageBuildError(f"cannot decompress the kernel {name}: {error}; it is damaged") from None
    for magic, command in _PROGRAMS.items():
        if payload.startswith(magic):
            require_tools(command[0], "prlimit")
            packed, unpacked = work / "payload", work / "payload.elf"
            packed.write_bytes(payload[:-4])
            bounded = ["prlimit", f"--fsize={MAX_BYTES}", "--", *command]
            try:
                await run_tool(
                    bounded, name=command[0], log=log, timeout_seconds=_TIMEOUT_SECONDS, stdin=packed, stdout=unpacked
                )
                return unpacked.read_bytes()
            finally:
                packed.unlink()
                unpacked.unlink(missing_ok=True)
    raise ImageBuildError(f"the kernel {name} has an unknown compression (magic number {payload[:6].hex()})")


def _within_bound(unpacked: bytes, name: str) -> bytes:
    if len(unpacked) > MAX_BYTES:
        raise ImageBuildError(f"the kernel in {name} has more than {MAX_BYTES >> 20} MB")
    return unpacked
