"""The ELF image of a kernel: its headers, what it says of itself, and its content without symbols.

A kernel is read, never run, on the host. Sources: elf(5); the notes of Linux' include/linux/elfnote.h and of
include/xen/interface/elfnote.h; IKCONFIG in kernel/configs.c.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import ImageBuildError

MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_MACHINES = {3: "x86", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64"}
_RELOCATABLE, _PT_LOAD, _PT_NOTE, _PT_INTERP = 1, 1, 4, 3
_MAX_SEGMENTS = 64
#: Bytes of notes in a segment that are read; a kernel has less than a kilobyte of them.
_MAX_NOTES_BYTES = 64 << 10
#: XEN_ELFNOTE_PHYS32_ENTRY: the entry point of PVH.
_PVH_NOTE = (b"Xen", 18)
_BANNER = re.compile(rb"Linux version (\d[\w.+~-]{0,127}) \(")
#: The compressed configuration lies between these (CONFIG_IKCONFIG).
_CONFIG_START, _CONFIG_END = b"IKCFG_ST", b"IKCFG_ED"
_MAX_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: int
    offset: int
    size: int


class KernelElf:
    """A kernel's ELF image. Its constructor raises ImageBuildError, with the reason, for anything else."""

    def __init__(self, data: bytes, name: str, architecture: str) -> None:
        """`name` is the file's, for messages; `architecture` is the kernel's name of the one it must be for."""
        self.name = name
        self._data = data
        self._segments = _segments(data, name, architecture)
        banner = _BANNER.search(data)
        if banner is None:
            raise ImageBuildError(f"{name} is an ELF file but not a Linux kernel: it has no Linux version in it")
        #: The release, such as 6.1.0-56-cloud-amd64.
        self.version = banner[1].decode()

    @property
    def has_pvh_entry(self) -> bool:
        """Return whether a hypervisor can start it through PVH, as QEMU does."""
        return _PVH_NOTE in self._notes()

    def configuration(self) -> str | None:
        """Return the configuration that is embedded in the kernel; None without one."""
        start = self._data.find(_CONFIG_START)
        end = self._data.find(_CONFIG_END, start)
        if start < 0 or end < 0:
            return None
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            return unpacking.decompress(self._data[start + len(_CONFIG_START) : end], _MAX_CONFIG_BYTES).decode()
        except (zlib.error, UnicodeDecodeError):
            return None

    def __contains__(self, text: bytes) -> bool:
        """Return whether the kernel's code or data has these bytes; symbols and debug information do not count."""
        return self._data.find(text, 0, self._loaded_bytes) >= 0

    def stripped(self) -> bytes:
        """Return the image without sections, which are symbols and debug information to a loader."""
        head = bytearray(self._data[: max(self._headers_bytes, self._loaded_bytes)])
        struct.pack_into("<Q", head, 40, 0)  # e_shoff
        struct.pack_into("<HHH", head, 58, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
        return bytes(head)

    @property
    def _loaded_bytes(self) -> int:
        return max(segment.offset + segment.size for segment in self._segments)

    @property
    def _headers_bytes(self) -> int:
        _, _, _, _, _, table, _, _, _, entry_bytes, count, *_ = _HEADER.unpack_from(self._data)
        return max(_HEADER.size, int(table + count * entry_bytes))

    def _notes(self) -> Iterator[tuple[bytes, int]]:
        """Yield owner and type of each note."""
        for segment in self._segments:
            at, end = segment.offset, segment.offset + min(segment.size, _MAX_NOTES_BYTES)
            while segment.kind == _PT_NOTE and at + 12 <= end:
                name_bytes, description_bytes, kind = struct.unpack_from("<III", self._data, at)
                yield self._data[at + 12 : at + 12 + name_bytes].rstrip(b"\0"), kind
                at += 12 + _aligned(name_bytes) + _aligned(description_bytes)


def kernel_release(path: Path) -> str:
    """Return the release of the kernel in a file that was checked already; empty when it names none. Raises OSError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        banner = _BANNER.search(data)
        return banner[1].decode() if banner else ""


def _aligned(size: int) -> int:
    return (size + 3) & ~3


def _segments(data: bytes, name: str, architecture: str) -> list[_Segment]:
    if not data.startswith(MAGIC):
        raise ImageBuildError(f"{name} is not an ELF image")
    if len(data) < _HEADER.size:
        raise ImageBuildError(f"{name} is cut off: it has {len(data)} bytes, less than an ELF header")
    ident, kind, machine, _, _, table, _, _, _, entry_bytes, count, *_ = _HEADER.unpack_from(data)
    found = _MACHINES.get(machine, f"machine number {machine}")
    if ident[5] != 1:
        found = f"{found}, big-endian"
    elif ident[4] != 2:
        found = f"{found}, 32 bits"
    if found != architecture:
        raise ImageBuildError(f"{name} is for {found}; this host needs a kernel for {architecture}")
    if kind == _RELOCATABLE:
        raise ImageBuildError(f"{name} is an object file or a kernel module, not a kernel; give the file vmlinux")
    if entry_bytes != _SEGMENT.size or not 0 < count <= _MAX_SEGMENTS:
        raise ImageBuildError(f"{name} has no valid table of segments: it is damaged")
    if table + count * entry_bytes > len(data):
        raise ImageBuildError(f"{name} is cut off: it ends before its table of segments")
    segments = []
    for number in range(count):
        segment_kind, _, offset, _, _, size, _, _ = _SEGMENT.unpack_from(data, table + number * entry_bytes)
        if segment_kind == _PT_INTERP:
            raise ImageBuildError(f"{name} is a program of user space, not a kernel")
        if offset + size > len(data):
            raise ImageBuildError(
                f"{name} is cut off: it has {len(data)} bytes, its segments need {offset + size}; copy it again"
            )
        if segment_kind in (_PT_LOAD, _PT_NOTE):
            segments.append(_Segment(segment_kind, offset, size))
    if not any(segment.kind == _PT_LOAD for segment in segments):
        raise ImageBuildError(f"{name} has nothing to load: it is damaged, or holds only debug information")
    return segments
