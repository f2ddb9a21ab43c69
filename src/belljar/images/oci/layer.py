"""Apply one layer to a tree: files, folders, links and whiteouts, each checked; other entries are refused.

Source: the OCI image specification, layer.md. Devices, setuid and setgid bits, and extended attributes are dropped: a
machine has its own /dev, and no job may gain rights by executing a file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from typing import cast

from belljar.images.oci.stream import LayerStream
from belljar.images.oci.tree import RootTree, path_parts
from belljar.model.errors import InvalidImage

_CHUNK = 256 * 1024
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_MODES = 0o1777


class EntryCounter:
    """Limits the entries of all layers together."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._count = 0

    def count(self) -> None:
        """Count one entry. Raises InvalidImage over the limit."""
        self._count += 1
        if self._count > self._max_entries:
            raise InvalidImage(f"the image has over {self._max_entries} files; raise the setting max_image_files")


class LayerApplier:
    """Applies one layer to the tree. Its whiteouts do not hide the paths that it created itself."""

    def __init__(self, tree: RootTree, entries: EntryCounter) -> None:
        self._tree = tree
        self._entries = entries
        self._created: set[str] = set()

    def apply(self, stream: LayerStream) -> None:
        """Apply the tar archive. Raises InvalidImage when it is damaged or hostile, OSError."""
        try:
            with tarfile.open(fileobj=cast("tarfile._Fileobj", stream), mode="r|", bufsize=_CHUNK) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them in memory
                    self._entries.count()
                    self._add(archive, member)
        except tarfile.TarError as error:
            raise InvalidImage(f"a layer is not a tar archive, or damaged: {error}") from None
        except (UnicodeError, ValueError) as error:
            raise InvalidImage(f"a layer has an invalid entry: {error}") from None

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = path_parts(member.name)
        if not parts:
            return
        folder, name = self._tree.folder(parts[:-1]), parts[-1]
        path = f"{folder}/{name}"
        if name == _OPAQUE:
            self._clear(folder)
        elif name.startswith(_WHITEOUT):
            self._apply_whiteout(folder, name.removeprefix(_WHITEOUT))
        elif member.isdir():
            self._add_folder(path, member)
        elif member.isreg() and not member.issparse():
            self._add_file(archive, path, member)
        elif member.issym():
            self._add_symlink(path, member)
        elif member.islnk():
            self._add_hard_link(path, member)
        elif member.isdev():
            self._skip_device(parts, member)
        else:
            raise InvalidImage(f"a layer has an entry of an unsupported type: {member.name[:80]!r}")

    # --- adding -------------------------------------------------------------------------------------------------------

    def _add_folder(self, path: str, member: tarfile.TarInfo) -> None:
        mode = _mode_of(path)
        if mode is None or not stat.S_ISDIR(mode):
            self._remove(path)
            os.mkdir(path, 0o700)  # noqa: PTH102
        self._set_attributes(path, member)

    def _add_file(self, archive: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        self._remove(path)
        source = archive.extractfile(member)
        assert source is not None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        self._set_attributes(path, member)
        os.utime(path, (member.mtime, member.mtime))

    def _add_symlink(self, path: str, member: tarfile.TarInfo) -> None:
        if not member.linkname or len(os.fsencode(member.linkname)) > 4000:
            raise InvalidImage(f"the link {member.name[:80]!r} has no target, or one of over 4000 bytes")
        self._remove(path)
        os.symlink(member.linkname, path)  # noqa: PTH211
        self._tree.forget()
        self._created.add(path)
        _set_owner(path, member)

    def _add_hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        parts = path_parts(member.linkname, "a hard link")
        if not parts:
            raise InvalidImage(f"the hard link {member.name[:80]!r} refers to the root")
        source = f"{self._tree.folder(parts[:-1])}/{parts[-1]}"
        mode = _mode_of(source)
        if mode is None or stat.S_ISDIR(mode):
            raise InvalidImage(
                f"the hard link {member.name[:80]!r} refers to {member.linkname[:80]!r}, which is not a file"
            )
        if source == path:
            return
        self._remove(path)
        os.link(source, path, follow_symlinks=False)
        self._created.add(path)

    def _skip_device(self, parts: list[str], member: tarfile.TarInfo) -> None:
        if parts[0] == "dev" or member.isfifo():
            return  # old base images have some; a machine has its own /dev, and a pipe has no other end there
        raise InvalidImage(f"a layer has the device {member.name[:80]!r} outside /dev")

    # --- removing -----------------------------------------------------------------------------------------------------

    def _apply_whiteout(self, folder: str, name: str) -> None:
        if name in ("", ".", "..") or "/" in name:
            raise InvalidImage(f"a layer has an invalid whiteout of {name[:80]!r}")
        path = f"{folder}/{name}"
        if path not in self._created:
            self._remove(path, keep_created=True)

    def _clear(self, folder: str) -> None:
        """Remove the content of a folder that earlier layers created."""
        for name in os.listdir(folder):  # noqa: PTH208
            self._remove(f"{folder}/{name}", keep_created=True)

    def _remove(self, path: str, *, keep_created: bool = False) -> None:
        mode = _mode_of(path)
        if mode is None or (keep_created and path in self._created and not stat.S_ISDIR(mode)):
            return
        if not stat.S_ISDIR(mode):
            os.unlink(path)  # noqa: PTH108
            if stat.S_ISLNK(mode):
                self._tree.forget()
            return
        self._tree.forget()
        if not keep_created:
            shutil.rmtree(path)
            return
        self._clear(path)
        if path not in self._created:
            with contextlib.suppress(OSError):  # not empty: this layer created some of its content
                os.rmdir(path)  # noqa: PTH106

    def _set_attributes(self, path: str, member: tarfile.TarInfo) -> None:
        self._created.add(path)
        _set_owner(path, member)
        os.chmod(path, member.mode & _MODES)  # noqa: PTH101


def _mode_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def _set_owner(path: str, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        try:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        except (OSError, OverflowError):
            raise InvalidImage(
                f"{member.name[:80]!r} belongs to user {member.uid}, which is not available here"
            ) from None
