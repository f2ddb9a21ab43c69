"""Extract .zip, .tar, .tar.gz and .tar.xz archives, detected by their first bytes.

The archive may be hostile: names go through `Tree`, bytes are counted as they are decompressed, and sizes in headers
are not trusted. `zipfile` and `tarfile` read through `_BoundedReader`, so a header cannot make them allocate memory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, BinaryIO

from belljar.model.errors import InvalidScript
from belljar.scripts.limits import ExtractionBudget
from belljar.scripts.tree import CHUNK_BYTES, MAX_PATH_BYTES, Tree

#: The bytes at a file's start that `archive_kind` needs.
HEAD_BYTES = 512
#: The largest record of a tar header (pax fields, GNU long names). `tarfile` searches records with regular expressions
#: of quadratic time: 4 KiB of digits take 30 ms, during which no other thread runs.
_MAX_TAR_HEADER_BYTES = 4 * 1024
#: The largest central directory of a zip: room for 10,000 names of 300 bytes.
_MAX_ZIP_DIRECTORY_BYTES = 4 * 1024 * 1024
#: `xz -9` needs 65 MiB to decompress; a header may ask for 4 GiB.
_XZ_MEMORY_BYTES = 128 * 1024 * 1024
#: What the parsers raise for damaged input; the only OSError among them is gzip's own.
_PARSE_ERRORS = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    OverflowError,
    RuntimeError,  # RecursionError, NotImplementedError
)


class ArchiveKind(StrEnum):
    """The supported archive formats."""

    ZIP = "zip"
    TAR = "tar"
    GZIP = "tar.gz"
    XZ = "tar.xz"


_MAGIC = (
    (b"PK\x03\x04", ArchiveKind.ZIP),
    (b"PK\x05\x06", ArchiveKind.ZIP),
    (b"\x1f\x8b\x08", ArchiveKind.GZIP),
    (b"\xfd7zXZ\x00", ArchiveKind.XZ),
)
_UNSUPPORTED = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
)
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz")


def archive_kind(head: bytes, filename: str) -> ArchiveKind | None:
    """Return the format of a file that begins with `head`, None when it is not an archive.

    The bytes decide. The name only identifies old tar archives, which have no magic number.

    Raises InvalidScript for other formats, and for a file that is named like an archive but is not one.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return ArchiveKind.TAR
    unsupported = next((name for magic, name in _UNSUPPORTED if head.startswith(magic)), None)
    if head.startswith(b"BZh") and head[4:10] == b"1AY&SY":
        unsupported = "compressed with bzip2"
    if unsupported is not None:
        raise InvalidScript(f"the upload is {unsupported}, which is not supported; use .zip, .tar.gz or .tar.xz")
    if filename.lower().endswith(".tar"):
        return ArchiveKind.TAR
    if filename.lower().endswith(_SUFFIXES):
        raise InvalidScript(f"{filename[-80:]!r} is named like an archive but is not one; pack it again")
    return None


def unpack(source: Path, kind: ArchiveKind, tree: Tree, budget: ExtractionBudget, decompressed: Path) -> None:
    """Extract the archive's members into the tree; blocks.

    A compressed tar is first decompressed into the file `decompressed`, within the budget; the caller removes it.

    Raises InvalidScript with the member's name, TooLarge, OSError.
    """
    try:
        with source.open("rb") as packed:
            if kind is ArchiveKind.ZIP:
                _unpack_zip(packed, tree, budget)
            elif kind is ArchiveKind.TAR:
                _unpack_tar(packed, tree, budget)
            else:
                _decompress(packed, kind, decompressed, budget)
                with decompressed.open("rb") as plain:
                    _unpack_tar(plain, tree, budget)
    except _PARSE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise InvalidScript(f"the {kind} archive cannot be read ({reason[:120]}); pack it again") from error


class _BoundedReader(io.RawIOBase):
    """A file that refuses single reads of more than `max_read_bytes`."""

    def __init__(self, file: BinaryIO, max_read_bytes: int, budget: ExtractionBudget) -> None:
        self._file = file
        self._max_read_bytes = max_read_bytes
        self._budget = budget
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        self._budget.check()
        left = max(0, self._size - self._file.tell())
        requested = left if size is None or size < 0 else size
        if min(requested, left) > self._max_read_bytes:
            raise InvalidScript(
                f"the archive has headers of over {self._max_read_bytes} bytes; pack it again with zip or tar"
            )
        return self._file.read(requested)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise ValueError("offset before the start of the file")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


# --- zip ------------------------------------------------------------------------------------------------------------


def _unpack_zip(packed: BinaryIO, tree: Tree, budget: ExtractionBudget) -> None:
    reader = _BoundedReader(packed, _MAX_ZIP_DIRECTORY_BYTES, budget)
    with zipfile.ZipFile(reader) as archive:
        for member in archive.infolist():
            name = _zip_name(member)
            if not _is_finder_metadata(name):
                _add_zip_member(archive, member, name, tree)


def _add_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, tree: Tree) -> None:
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if name.endswith("/") or kind == stat.S_IFDIR:
        tree.add_folder(name)
        return
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        raise InvalidScript(f"{name[:80]!r} is a device, pipe or socket; a script has only files, folders and links")
    if member.flag_bits & 0x2041:  # encrypted; strongly; with hidden headers (APPNOTE.TXT 4.4.4)
        raise InvalidScript("the zip archive is encrypted; pack it without a password")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InvalidScript(f"{name[:80]!r} has an unsupported compression method; pack the zip archive with deflate")
    with archive.open(member) as content:
        if kind == stat.S_IFLNK:
            tree.add_link(name, content.read(MAX_PATH_BYTES + 1).decode("utf-8", "surrogateescape"))
        else:
            tree.add_file(name, _read_all(content), executable=bool(mode & 0o111))


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return the member's name. Without the UTF-8 flag it is code page 437 by the standard, but macOS writes UTF-8."""
    name = member.orig_filename  # `filename` ends at a NUL
    if member.flag_bits & 0x800:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _is_finder_metadata(name: str) -> bool:
    """Return whether the macOS Finder added this member."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] == ".DS_Store"


# --- tar ------------------------------------------------------------------------------------------------------------


def _unpack_tar(plain: BinaryIO, tree: Tree, budget: ExtractionBudget) -> None:
    reader = _BoundedReader(plain, _MAX_TAR_HEADER_BYTES, budget)
    try:
        archive = tarfile.open(fileobj=reader, mode="r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
    except tarfile.ReadError:
        raise InvalidScript(
            "the upload is not a tar archive; create one with `tar -czf script.tar.gz FOLDER`"
        ) from None
    with archive:
        while (member := archive.next()) is not None:
            if member.size < 0:  # tarfile would seek back and read the same header forever
                raise InvalidScript(f"{member.name[:80]!r} has a negative size; pack the archive again")
            _add_tar_member(plain, member, tree)
        _check_end(plain, archive.offset)


def _add_tar_member(plain: BinaryIO, member: tarfile.TarInfo, tree: Tree) -> None:
    name = member.name
    if member.isdir():
        tree.add_folder(name)
    elif member.issym():
        tree.add_link(name, member.linkname)
    elif member.islnk():
        tree.add_copy(name, member.linkname)
    elif member.sparse is not None or member.type == tarfile.GNUTYPE_SPARSE:
        raise InvalidScript(f"{name[:80]!r} is a sparse file; pack the archive without --sparse")
    elif member.isreg():
        executable = bool(member.mode & 0o111)
        tree.add_file(name, _read_exactly(plain, member.offset_data, member.size), executable=executable)
    else:
        raise InvalidScript(f"{name[:80]!r} is a device, pipe or socket; a script has only files, folders and links")


def _check_end(plain: BinaryIO, offset: int) -> None:
    """Raise EOFError unless the archive ends here: `tarfile` treats a damaged header as the end."""
    plain.seek(offset)
    if plain.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise EOFError(f"damaged at byte {offset}")


def _decompress(packed: BinaryIO, kind: ArchiveKind, decompressed: Path, budget: ExtractionBudget) -> None:
    reader = _BoundedReader(packed, _MAX_ZIP_DIRECTORY_BYTES, budget)
    with decompressed.open("xb") as out:
        for chunk in _gzip_chunks(reader) if kind is ArchiveKind.GZIP else _xz_chunks(reader):
            budget.count_stream_bytes(len(chunk))
            out.write(chunk)


def _gzip_chunks(packed: _BoundedReader) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=packed, mode="rb") as plain:
        yield from _read_all(plain)


def _xz_chunks(packed: _BoundedReader) -> Iterator[bytes]:
    """Decompress like lzma.LZMAFile, but with a memory limit, which that class lacks."""
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    data = packed.read(CHUNK_BYTES)
    while data or not decompressor.eof:
        if decompressor.eof:
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
        if decompressor.needs_input and not data:
            raise EOFError("unexpected end of file")
        yield decompressor.decompress(data, CHUNK_BYTES)
        data = b""
        if decompressor.eof:
            data = _next_stream(packed, decompressor.unused_data)
        elif decompressor.needs_input:
            data = packed.read(CHUNK_BYTES)


def _next_stream(packed: _BoundedReader, unused: bytes) -> bytes:
    """Return the first bytes of the next xz stream, after any zero padding; empty at the end of the file."""
    data = unused.lstrip(b"\0")
    while not data:
        more = packed.read(CHUNK_BYTES)
        if not more:
            return b""
        data = more.lstrip(b"\0")
    return data


# --- reading --------------------------------------------------------------------------------------------------------


def _read_all(content: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


def _read_exactly(plain: BinaryIO, offset: int, size: int) -> Iterator[bytes]:
    plain.seek(offset)
    while size > 0:
        chunk = plain.read(min(CHUNK_BYTES, size))
        if not chunk:
            raise EOFError("unexpected end of file")
        size -= len(chunk)
        yield chunk
