"""Records: how file operations of the agent describe files, events and ports, and the host describes files to them.

Every byte from the guest is hostile. A path in a record is never used as a path on the host.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum

from belljar.model.errors import GuestProtocolError
from belljar.node.guest.process import Process
from belljar.node.guest.wire import Stream

HEADER = struct.Struct("<BBHIIHHQQQ")
#: Bytes of a path: Linux's PATH_MAX without its final zero.
MAX_FILE_PATH = 4095
#: Nanoseconds up to which Python's clock types reach.
_MAX_TIME_NS = 1 << 63


class RecordKind(IntEnum):
    """What a record describes."""

    ENTRY = 1
    #: A folder whose entries cannot be listed.
    UNREADABLE = 2
    EVENT = 3
    PORT = 4
    #: The last record of an archive.
    END = 5


class FileType(IntEnum):
    """The type of a file, by its letter in listings; HARD_LINK only in archives."""

    FILE = ord("f")
    FOLDER = ord("d")
    LINK = ord("l")
    HARD_LINK = ord("h")
    FIFO = ord("p")
    SOCKET = ord("s")
    BLOCK_DEVICE = ord("b")
    CHARACTER_DEVICE = ord("c")


class EventKind(IntEnum):
    """What happened to a path below a watched folder."""

    READY = 1
    CREATE = 2
    WRITE = 3
    REMOVE = 4
    MOVE_FROM = 5
    MOVE_TO = 6
    ATTRIBUTES = 7
    #: Events were lost, or a folder is not watched since there are too many.
    OVERFLOW = 8


@dataclass(frozen=True, slots=True)
class Record:
    """One record; which fields are used depends on its kind."""

    kind: RecordKind
    type: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    modified_ns: int = 0
    path: str = ""
    target: str = ""

    def encode(self) -> bytes:
        """Return its bytes. Raises ValueError for a path over MAX_FILE_PATH bytes or with a zero byte."""
        path, target = self.path.encode(errors="surrogateescape"), self.target.encode(errors="surrogateescape")
        if len(path) > MAX_FILE_PATH or len(target) > MAX_FILE_PATH or b"\0" in path + target:
            raise ValueError(f"{self.path[:100]!r} is no path: a zero byte, or over {MAX_FILE_PATH} bytes")
        head = HEADER.pack(
            self.kind, self.type, self.mode, self.uid, self.gid, len(path), len(target), self.size, self.modified_ns, 0
        )
        return head + path + target


def parse_header(data: bytes) -> tuple[Record, int, int]:
    """Return a record without its paths, and their lengths. Raises GuestProtocolError."""
    kind, type_, mode, uid, gid, path, target, size, modified_ns, zero = HEADER.unpack(data)
    valid = mode <= 0o7777 and path <= MAX_FILE_PATH and target <= MAX_FILE_PATH and not zero
    if not valid or size >= 1 << 63 or modified_ns >= _MAX_TIME_NS:
        raise GuestProtocolError("invalid record from a file operation in the guest")
    try:
        record = Record(RecordKind(kind), type_, mode, uid, gid, size, modified_ns)
        if record.kind in (RecordKind.ENTRY, RecordKind.UNREADABLE):
            FileType(type_)
        elif record.kind is RecordKind.EVENT:
            EventKind(type_)
        elif record.kind is RecordKind.PORT and (type_ not in (4, 6) or size > 0xFFFF):
            raise ValueError
    except ValueError:
        raise GuestProtocolError(f"unknown record {kind} of type {type_} from a file operation in the guest") from None
    return record, path, target


class OperationOutput:
    """The output of a file operation: records, and bytes between them."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiting = bytearray()

    async def record(self) -> Record | None:
        """Return the next record; None at the end. Raises GuestProtocolError, ChannelBroken."""
        head = await self._take(HEADER.size)
        if head is None:
            return None
        record, path, target = parse_header(head)
        text = await self._take(path + target) if path + target else b""
        if text is None or b"\0" in text:
            raise GuestProtocolError("incomplete record from a file operation in the guest")
        return Record(
            record.kind,
            record.type,
            record.mode,
            record.uid,
            record.gid,
            record.size,
            record.modified_ns,
            text[:path].decode(errors="surrogateescape"),
            text[path:].decode(errors="surrogateescape"),
        )

    async def pieces(self, size: int | None = None) -> AsyncIterator[bytes]:
        """Yield the next `size` bytes (None: all) in pieces; fewer when the operation ends before."""
        while size is None or size > 0:
            if not self._waiting and not await self._fill():
                return
            piece = bytes(self._waiting[:size] if size is not None else self._waiting)
            del self._waiting[: len(piece)]
            size = None if size is None else size - len(piece)
            yield piece

    async def _take(self, size: int) -> bytes | None:
        """Return exactly `size` bytes; None when there are none left."""
        while len(self._waiting) < size:
            if not await self._fill():
                if self._waiting:
                    raise GuestProtocolError("incomplete record from a file operation in the guest")
                return None
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        return data

    async def _fill(self) -> bool:
        while (piece := await self._process.read()) is not None:
            if piece.stream is Stream.STDOUT:
                self._waiting += piece.data
                return True
        return False
