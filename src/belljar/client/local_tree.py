"""Folders of this host as tar archives, and back. An archive from a sandbox is hostile."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from belljar.client.errors import LocalPathRefused

#: Entries of an archive that are extracted at most.
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 128
#: What a download from a sandbox writes to this host at most, unless the caller says more.
MAX_DOWNLOAD_BYTES = 10 << 30
_PIECE_BYTES = 1 << 18
#: The headers of one entry, with long names and the maps of sparse files.
_MAX_HEADER_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _NoLinks(dict[object, str]):
    """What tarfile keeps to find further names of a file: it finds none."""

    def __contains__(self, inode: object) -> bool:
        return False


class _BoundedHeaders:
    """An archive of whose headers only so much is read: tarfile would take a name or map of any length into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left: int | None = _MAX_HEADER_BYTES
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises LocalPathRefused."""
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                raise LocalPathRefused(
                    f"an entry of the archive has a header of over {_MAX_HEADER_BYTES} bytes; nothing more is written"
                )
        return self._file.read(size)

    @contextlib.contextmanager
    def content(self) -> Iterator[None]:
        """Read the content of an entry in the block, and the header of the next one behind it."""
        self._left = None
        yield
        self._left = _MAX_HEADER_BYTES


def pack_folder(folder: Path, target: IO[bytes]) -> None:
    """Write the regular files, folders and links below a folder as a tar archive, without owners."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member if member.isreg() or member.isdir() or member.issym() else None

    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        # A file with several names is sent once for each: a sandbox may refuse hard links.
        archive.inodes = _NoLinks()  # type: ignore[attr-defined]
        for path in sorted(folder.iterdir()):
            archive.add(path, arcname=path.name, filter=anonymous)


def check_size(name: str, size: int, max_bytes: int) -> None:
    """Raise LocalPathRefused for a download that is larger than it may be."""
    if size > max_bytes:
        raise LocalPathRefused(f"{name[:200]} has over {max_bytes} bytes; allow more with max_bytes (--max-mb)")


def extract_folder(
    source: IO[bytes], target: Path, is_archive: bool = True, *, max_bytes: int = MAX_DOWNLOAD_BYTES
) -> list[str]:
    """Write a tar archive below a folder, or plain bytes as a file; return the names of links and devices left out.

    Raises LocalPathRefused for a name that leaves the folder or leads through a link, for a broken archive, and for
    files of more than `max_bytes` together: a small archive can describe files that are much larger.
    """
    if not is_archive:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opened(target.parent.resolve()) as folder:
            _write(folder, target.name, source, 0o644)
        return []
    target.mkdir(parents=True, exist_ok=True)
    left_out, size, bounded = [], 0, _BoundedHeaders(source)
    try:
        with _opened(target.resolve()) as root, _archive_of(bounded) as archive:
            for number, member in enumerate(archive):
                archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep them all
                if number >= _MAX_ENTRIES:
                    raise LocalPathRefused(f"the archive has over {_MAX_ENTRIES} entries; copy its folders one by one")
                size += member.size if member.isreg() else 0
                check_size(target.name, size, max_bytes)
                with bounded.content():
                    if not _extract(root, member, archive):
                        left_out.append(member.name)
    except tarfile.TarError as error:
        raise LocalPathRefused(f"the archive is broken: {error}") from None
    return left_out


def _archive_of(file: _BoundedHeaders) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:")  # type: ignore[call-overload, no-any-return]


def _extract(root: int, member: tarfile.TarInfo, archive: tarfile.TarFile) -> bool:
    """Write one entry below the folder `root`; return False for a link or a device."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or len(parts) > _MAX_DEPTH:
        raise LocalPathRefused(
            f"the archive has the name {member.name[:200]!r}, which leaves the folder; nothing more is written"
        )
    if not (member.isreg() or member.isdir()):
        return False
    if not parts:
        return True
    with _below(root, parts[:-1]) as folder:
        if member.isdir():
            _make_folder(folder, parts[-1], member.name)
            return True
        content = archive.extractfile(member)
        assert content is not None
        _write(folder, parts[-1], content, member.mode & 0o777)
    return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _below(root: int, parts: list[str]) -> Iterator[int]:
    """Open the folder at a path below `root`, made as necessary; no link is followed."""
    folder = os.dup(root)
    try:
        for index, part in enumerate(parts):
            name = "/".join(parts[: index + 1])
            _make_folder(folder, part, name)
            try:
                below = os.open(part, _FOLDER, dir_fd=folder)
            except OSError as error:
                raise LocalPathRefused(
                    f"{name} is no folder that can be written to ({error.strerror}); remove it"
                ) from None
            os.close(folder)
            folder = below
        yield folder
    finally:
        os.close(folder)


def _make_folder(folder: int, name: str, shown: str) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise LocalPathRefused(f"{shown} exists and is no folder; remove it") from None


def _write(folder: int, name: str, content: IO[bytes], mode: int) -> None:
    """Write a file in place of what has its name, unless that is a folder."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)  # never write through a link
    with open(os.open(name, _NEW_FILE, mode, dir_fd=folder), "wb") as file:  # noqa: PTH123 (of a descriptor)
        shutil.copyfileobj(content, file, _PIECE_BYTES)
