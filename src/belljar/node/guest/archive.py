"""Tar archives, made of and parsed into the records of file operations. Archives come from a client, records from a
guest: both are hostile, and neither's paths are used on the host.
"""

from __future__ import annotations

import tarfile
from collections.abc import AsyncIterator

from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.file_records import MAX_FILE_PATH, FileType, OperationOutput, Record, RecordKind

_BLOCK = 512
#: The end of an archive.
END = bytes(2 * _BLOCK)
#: Bytes of an extended header: a path, a link's target, and some attributes.
_MAX_HEADER = 64 * 1024
_TYPES = {FileType.FILE: tarfile.REGTYPE, FileType.FOLDER: tarfile.DIRTYPE, FileType.LINK: tarfile.SYMTYPE}
_RECORD_TYPES = {
    tarfile.REGTYPE: FileType.FILE,
    tarfile.AREGTYPE: FileType.FILE,
    tarfile.DIRTYPE: FileType.FOLDER,
    tarfile.SYMTYPE: FileType.LINK,
    tarfile.LNKTYPE: FileType.HARD_LINK,
}
_PIECE = 64 * 1024
#: What is used of extended headers; nothing else is kept.
_EXTENDED_KEYS = frozenset({"path", "linkpath", "size", "GNU.sparse.major"})
_MAX_SIZE = (1 << 63) - 1


class InvalidArchive(Exception):
    """The archive is not a tar archive, or one with entries that cannot be extracted."""


async def encode(record: Record, content: OperationOutput) -> AsyncIterator[bytes]:
    """Yield the archive's bytes for one record, with the file's bytes that follow it. Raises ChannelBroken."""
    if record.kind is RecordKind.END:
        return
    kind = _TYPES.get(FileType(record.type)) if record.kind is RecordKind.ENTRY else None
    if kind is None:
        raise ChannelBroken("the archive has an entry of an unknown type")
    if not record.path or record.path.startswith("/") or ".." in record.path.split("/"):
        raise ChannelBroken(f"the archive has an entry outside its folder: {record.path[:200]!r}")
    header = tarfile.TarInfo(record.path)
    header.type = kind
    header.mode = record.mode
    header.uid, header.gid = record.uid, record.gid
    header.mtime = record.modified_ns // 1_000_000_000
    header.linkname = record.target
    header.size = record.size if kind == tarfile.REGTYPE else 0
    yield header.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
    left = header.size
    async for piece in content.pieces(left):
        left -= len(piece)
        yield piece
    if left:
        raise ChannelBroken("the archive broke off in the middle of a file")
    yield bytes(-header.size % _BLOCK)


class _Input:
    """Bytes of an archive, taken in exact numbers."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self._waiting = bytearray()

    async def take(self, size: int) -> bytes:
        """Return exactly `size` bytes. Raises InvalidArchive at the end."""
        while len(self._waiting) < size:
            await self._fill()
        data = bytes(self._waiting[:size])
        del self._waiting[:size]
        return data

    async def up_to(self, size: int) -> bytes:
        """Return at least one and at most `size` bytes. Raises InvalidArchive at the end."""
        if not self._waiting:
            await self._fill()
        return await self.take(min(size, len(self._waiting)))

    async def _fill(self) -> None:
        try:
            self._waiting += await anext(self._pieces)
        except StopAsyncIteration:
            raise InvalidArchive("the archive breaks off") from None


async def decode(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the records of an archive and the files' bytes. Raises InvalidArchive."""
    source = _Input(pieces)
    extended: dict[str, str] = {}
    while (block := await source.take(_BLOCK)) != bytes(_BLOCK):
        header = _parse(block)
        if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            extended |= await _extended(header, source)
        elif header.type == tarfile.XGLTYPE:
            await _skip(source, header.size)
        else:
            async for piece in _entry(header, extended, source):
                yield piece
            extended = {}


def _parse(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise InvalidArchive(f"this is no tar archive, or a damaged one: {error}") from None
    if not 0 <= header.size <= _MAX_SIZE:  # the format has negative numbers
        raise InvalidArchive(f"{header.name[:200]!r} has a size of {header.size} bytes; the archive is damaged")
    return header


async def _extended(header: tarfile.TarInfo, source: _Input) -> dict[str, str]:
    """Parse a header that belongs to the next entry: of POSIX (pax) or of GNU tar."""
    if header.size > _MAX_HEADER:
        raise InvalidArchive(f"a header of the archive has {header.size} bytes; at most {_MAX_HEADER} are allowed")
    data = await source.take(header.size)
    await source.take(-header.size % _BLOCK)
    if header.type == tarfile.XHDTYPE:
        return _pax(data)
    key = "path" if header.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
    return {key: data.rstrip(b"\0").decode(errors="surrogateescape")}


def _pax(data: bytes) -> dict[str, str]:
    """Parse lines "LENGTH KEY=VALUE\\n"; the length is the whole line's."""
    found: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, rest = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        line = rest[: size - len(length) - 1]
        key, equals, value = line.partition(b"=")
        if not size or not equals or not line.endswith(b"\n") or len(line) != size - len(length) - 1:
            raise InvalidArchive("a header of the archive is damaged")
        if (name := key.decode(errors="replace")) in _EXTENDED_KEYS:
            found[name] = value[:-1].decode(errors="surrogateescape")
        data = data[size:]
    return found


async def _entry(header: tarfile.TarInfo, extended: dict[str, str], source: _Input) -> AsyncIterator[bytes]:
    size = _size(extended["size"]) if "size" in extended else header.size
    name = extended.get("path", header.name)
    path, target = _path_of(name), extended.get("linkpath", header.linkname)
    if "GNU.sparse.major" in extended or header.type == tarfile.GNUTYPE_SPARSE:
        raise InvalidArchive(f"{name!r} is a sparse file; make the archive without --sparse")
    kind = _RECORD_TYPES.get(header.type)
    if kind is None:
        raise InvalidArchive(f"{name!r} is neither a file nor a folder nor a link")
    size = size if kind is FileType.FILE else 0
    if path:  # not the folder itself
        record = Record(
            RecordKind.ENTRY,
            kind,
            mode=header.mode & 0o777,
            size=size,
            modified_ns=max(0, int(header.mtime)) * 1_000_000_000 % (1 << 63),
            path=path,
            target=target if kind in (FileType.LINK, FileType.HARD_LINK) else "",
        )
        try:
            yield record.encode()
        except ValueError as error:
            raise InvalidArchive(str(error)) from None
    left = size
    while left:
        piece = await source.up_to(min(left, _PIECE))
        left -= len(piece)
        if path:
            yield piece
    await source.take(-size % _BLOCK)


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MAX_SIZE):
        raise InvalidArchive(f"a header of the archive has a size of {text[:40]!r}; it is damaged")
    return int(text)


def _path_of(name: str) -> str:
    """Return the path relative to the folder, without "." parts. Raises InvalidArchive for one that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or len(name) > MAX_FILE_PATH:
        raise InvalidArchive(f"{name[:200]!r} leads out of the archive, or is too long")
    return "/".join(parts)


async def _skip(source: _Input, size: int) -> None:
    left = size + -size % _BLOCK
    while left:
        left -= len(await source.up_to(min(left, _PIECE)))
