"""Writes artifacts below a folder of this host. Their paths come from a machine or a server, and are not trusted.

Every folder of a path is opened by descriptor without following links, so that nothing outside the folder is written.
A file is written under a temporary name and renamed when it is complete: half a file never looks like an artifact.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import InvalidOption, is_disk_full
from belljar.model.job import Artifact

_MAX_NAME_BYTES = 255
_MAX_PATH_BYTES = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class NotKept:
    """An artifact that was not written, and the reason."""

    path: str
    reason: str


def safe_parts(path: str) -> tuple[str, ...] | None:
    """Return the parts of an untrusted path that is safe below a folder of the host; None when it is not."""
    parts = path.split("/")
    if not path.isprintable() or len(path.encode()) > _MAX_PATH_BYTES:
        return None
    if any(part in ("", ".", "..") or len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        return None
    return tuple(parts)


def make_artifacts_folder(folder: Path) -> None:
    """Make the folder if it is missing. Raise InvalidOption before the job runs unless files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise InvalidOption(f"--artifacts: {folder} is not a folder; name another", option="artifacts") from None
    except OSError as error:
        reason = f"{folder} cannot be written: {error.strerror}"
        raise InvalidOption(f"--artifacts: {reason}; name another folder", option="artifacts") from None


class FolderArtifacts:
    """Writes artifacts one after the other. `kept` lists those that are complete, `failed` the others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current: Artifact | None = None
        #: Descriptors of the current file and its folder; -1 without a file.
        self._parent = self._file = -1
        self._temporary = ""
        self._written = 0
        self.kept: list[Artifact] = []
        self.failed: list[NotKept] = []

    async def begin(self, path: str, size: int) -> None:
        self.open(path, size)

    async def write(self, data: bytes) -> None:
        self.add(data)

    async def end(self) -> None:
        self.finish()

    def open(self, path: str, size: int) -> bool:
        """Begin a file; return whether its bytes are wanted."""
        self.abandon("incomplete")
        self._current, self._written = Artifact(path=path, size_bytes=size), 0
        parts = safe_parts(path)
        if parts is None:
            self._fail("the path is not safe on this host")
            return False
        try:
            self._parent = self._open_folder(parts[:-1])
            self._check_target(parts[-1])
            self._temporary = f".belljar-{secrets.token_hex(8)}.part"
            self._file = os.open(self._temporary, _NEW_FILE, 0o600, dir_fd=self._parent)
        except OSError as error:
            self._fail(_reason(error))
        return self._file >= 0

    def add(self, data: bytes) -> bool:
        """Write bytes of the current file; return whether more of them are wanted."""
        if self._current is None or self._file < 0:
            return False
        self._written += len(data)
        if self._written > self._current.size_bytes:
            self._fail(f"larger than the announced {self._current.size_bytes} bytes")
            return False
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            self._fail(_reason(error))
        return self._file >= 0

    def finish(self) -> None:
        """End the current file, and rename it to its path."""
        if self._current is None or self._file < 0:
            self._close()
            return
        if self._written < self._current.size_bytes:
            self._fail(f"incomplete: {self._written} of {self._current.size_bytes} bytes")
            return
        name = self._current.path.rpartition("/")[2]
        try:
            os.fchmod(self._file, 0o644)
            file, self._file = self._file, -1
            os.close(file)  # a full network file system reports it here
            self._check_target(name)
            os.rename(self._temporary, name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except OSError as error:
            self._fail(_reason(error))
            return
        self.kept.append(self._current)
        self._temporary = ""
        self._close()

    def abandon(self, reason: str) -> None:
        """Remove the current file, if there is one."""
        if self._current is not None:
            self._fail(reason)

    def _fail(self, reason: str) -> None:
        assert self._current is not None
        self.failed.append(NotKept(self._current.path, reason))
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
        if self._parent >= 0:
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._parent)
            os.close(self._parent)
        self._parent = self._file = -1
        self._temporary = ""
        self._current = None

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        """Return a descriptor of the folder at these parts below ours; make missing folders. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._folder, _FOLDER & ~os.O_NOFOLLOW)  # the user named it: it may be a link
        for part in parts:
            parent = folder
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=parent)
                folder = os.open(part, _FOLDER, dir_fd=parent)
            except OSError as error:
                # For a link open(2) reports ENOTDIR, without the name.
                error.filename = part
                raise
            finally:
                os.close(parent)
        return folder

    def _check_target(self, name: str) -> None:
        """Raise OSError unless nothing has the name, or a file, which is replaced."""
        try:
            mode = os.stat(name, dir_fd=self._parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "a link has this name, and is not followed", name)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EEXIST, "something other than a file has this name", name)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.ELOOP) and error.filename:
        if error.errno == errno.ENOTDIR:
            return f"{error.filename} is a link or not a folder"
        return str(error.strerror)
    if is_disk_full(error):
        return "no room left on the disk"
    return error.strerror or str(error)
