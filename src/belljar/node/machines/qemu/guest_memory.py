"""The memory of a stopped QEMU's guest, as a part of a frozen machine.

A machine that booted has its memory in a memfd that QEMU maps shared: the memfd is read. A clone maps the memfd of its
snapshot privately: its pages are those of the memfd, except the ones that it has written, which are private to its
process. The kernel tells which these are (proc_pid_pagemap(5), Documentation/admin-guide/mm/pagemap.rst: bit 63
present, 62 swapped, 61 file page), and they are read from the process's memory. So what a clone changed is found
without comparing anything, and reading brings no page of the guest into memory that was not there.

The guest may have taken over its QEMU, which then offers other contents, but only what its own process can read.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import MachineError
from belljar.node.frozen.manifest import PIECE_BYTES
from belljar.node.frozen.parts import data_pieces
from belljar.node.machines.qemu.snapshot_files import MEMORY

_PAGE = 4096
_ENTRY_BYTES = 8
_PAGES_OF_PIECE = PIECE_BYTES // _PAGE
_MAX_MAPS_BYTES = 4 << 20
#: Address range, protection with `p` for private, offset, device, inode.
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) [0-9a-f]+:[0-9a-f]+ (\d+)")


@dataclass(frozen=True, slots=True)
class _Mapping:
    """A part of the memfd in the process's address space."""

    address: int
    offset: int
    length: int
    is_private: bool


class GuestMemory:
    """The memory as a `PartSource`. The process must not run its guest while it is read."""

    name = MEMORY

    def __init__(self, pids: list[int], memory: int) -> None:
        """`pids`: QEMU's process, and the ones around it; `memory`: the memfd that it maps.

        Raises MachineError when none of the processes maps it.
        """
        self.size = os.fstat(memory).st_size
        self._memory = memory
        self._pid, self._mappings = _find(pids, os.fstat(memory).st_ino)
        within = all(mapping.offset + mapping.length <= self.size for mapping in self._mappings)
        if not within or sum(mapping.length for mapping in self._mappings) != self.size:
            raise MachineError("the machine's process has mapped its memory in another way than it was told")

    def pieces(self, *, changed_only: bool) -> Iterator[tuple[int, bytes | None]]:
        """Implement `PartSource.pieces`."""
        if not any(mapping.is_private for mapping in self._mappings):
            for index in data_pieces(self._memory, self.size):
                yield index, os.pread(self._memory, PIECE_BYTES, index * PIECE_BYTES)
            return
        with self._opened("pagemap") as pagemap, self._opened("mem") as memory:
            written = self._written_pages(pagemap)
            unchanged = data_pieces(self._memory, self.size)
            for index in sorted({*unchanged, *written}):
                if index in written:
                    yield index, self._overlaid(memory, index, written[index])
                elif changed_only:
                    yield index, None
                else:
                    yield index, os.pread(self._memory, PIECE_BYTES, index * PIECE_BYTES)

    def _written_pages(self, pagemap: int) -> dict[int, list[int]]:
        """Return, by piece, the numbers of its pages that the guest has written."""
        written: dict[int, list[int]] = {}
        for mapping in self._mappings:
            count = mapping.length // _PAGE
            data = os.pread(pagemap, count * _ENTRY_BYTES, mapping.address // _PAGE * _ENTRY_BYTES)
            entries = array.array("Q", data)
            if len(entries) != count:
                raise MachineError("the pages of the machine's memory cannot be read; its process has ended")
            first = mapping.offset // _PAGE
            for page, entry in enumerate(entries, first):
                if entry >> 62 and not entry >> 61 & 1:
                    written.setdefault(page // _PAGES_OF_PIECE, []).append(page)
        return written

    def _overlaid(self, memory: int, index: int, pages: list[int]) -> bytes:
        """Return a piece of the memfd with the guest's own pages over it."""
        if len(pages) == _PAGES_OF_PIECE:
            return self._read(memory, pages[0], len(pages))
        length = min(PIECE_BYTES, self.size - index * PIECE_BYTES)
        piece = bytearray(os.pread(self._memory, length, index * PIECE_BYTES))
        for first, count in _runs(pages):
            at = first * _PAGE - index * PIECE_BYTES
            piece[at : at + count * _PAGE] = self._read(memory, first, count)
        return bytes(piece)

    def _read(self, memory: int, first: int, count: int) -> bytes:
        """Return pages of the process's memory by their numbers in the guest's."""
        data = bytearray()
        at, end = first * _PAGE, (first + count) * _PAGE
        while at < end:
            mapping = next(each for each in self._mappings if each.offset <= at < each.offset + each.length)
            length = min(end, mapping.offset + mapping.length) - at
            read = os.pread(memory, length, mapping.address + at - mapping.offset)
            if len(read) != length:
                raise MachineError("the machine's memory cannot be read; its process has ended")
            data += read
            at += length
        return bytes(data)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        descriptor = os.open(f"/proc/{self._pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _find(pids: list[int], inode: int) -> tuple[int, list[_Mapping]]:
    for pid in pids:
        with contextlib.suppress(OSError), Path(f"/proc/{pid}/maps").open() as maps:
            found = list(_parse(maps.read(_MAX_MAPS_BYTES), inode))
            if found:
                return pid, found
    raise MachineError("no process of the machine has its memory; it has ended")


def _parse(maps: str, inode: int) -> Iterator[_Mapping]:
    """Yield the mappings of the memfd with this inode. Memfds are files of one kernel-internal file system."""
    for line in maps.splitlines():
        match = _MAPPING.match(line)
        if match and int(match[5]) == inode and "/memfd:" in line:
            start, end = int(match[1], 16), int(match[2], 16)
            yield _Mapping(start, int(match[4], 16), end - start, match[3][3] == "p")


def _runs(pages: list[int]) -> Iterator[tuple[int, int]]:
    """Yield first page and length of each run of adjacent pages."""
    first, count = pages[0], 1
    for page in pages[1:]:
        if page == first + count:
            count += 1
            continue
        yield first, count
        first, count = page, 1
    yield first, count
