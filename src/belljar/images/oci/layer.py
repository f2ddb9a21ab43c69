"""One layer laid over a tree: files, folders, links and whiteouts, each checked; nothing else is let in.

Source: the OCI image specification, layer.md. Devices, setuid and setgid bits, and extended attributes do not come
along: a job's machine has its own /dev, and nobody in it gains rights by executing a file.
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


class Entries:
    """How many entries all layers together may have."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    def take(self) -> None:
        self._count += 1
        if self._count > self._most:
            raise InvalidImage(f"the image has more than {self._most} files; the setting max_image_files allows more")


class LayerApplier:
    """Lays one layer over the tree. Paths that it made itself are not hidden by its own whiteouts."""

    def __init__(self, tree: RootTree, entries: Entries) -> None:
        self._tree = tree
        self._entries = entries
        self._made: set[str] = set()

    def apply(self, stream: LayerStream) -> None:
        """Raises InvalidImage for an archive that is damaged or hostile."""
        try:
            with tarfile.open(fileobj=cast("tarfile._Fileobj", stream), mode="r|", bufsize=_CHUNK) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep every one of them
                    self._entries.take()
                    self._add(archive, member)
        except tarfile.TarError as error:
            raise InvalidImage(f"a layer is no tar archive, or damaged: {error}") from None
        except (UnicodeError, ValueError) as error:
            raise InvalidImage(f"a layer has an entry that cannot be: {error}") from None

    def _add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = path_parts(member.name)
        if not parts:
            return
        folder, name = self._tree.folder(parts[:-1]), parts[-1]
        path = f"{folder}/{name}"
        if name == _OPAQUE:
            self._clear(folder)
        elif name.startswith(_WHITEOUT):
            self._white_out(folder, name.removeprefix(_WHITEOUT))
        elif member.isdir():
            self._folder(path, member)
        elif member.isreg() and not member.issparse():
            self._file(archive, path, member)
        elif member.issym():
            self._symlink(path, member)
        elif member.islnk():
            self._hard_link(path, member)
        elif member.isdev():
            self._device(parts, member)
        else:
            raise InvalidImage(f"a layer has an entry of a kind that images have no use for: {member.name[:80]!r}")

    # --- what there is to add -----------------------------------------------------------------------------------------

    def _folder(self, path: str, member: tarfile.TarInfo) -> None:
        mode = _mode_of(path)
        if mode is None or not stat.S_ISDIR(mode):
            self._remove(path)
            os.mkdir(path, 0o700)  # noqa: PTH102
        self._finish(path, member)

    def _file(self, archive: tarfile.TarFile, path: str, member: tarfile.TarInfo) -> None:
        self._remove(path)
        source = archive.extractfile(member)
        assert source is not None
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        self._finish(path, member)
        os.utime(path, (member.mtime, member.mtime))

    def _symlink(self, path: str, member: tarfile.TarInfo) -> None:
        if not member.linkname or len(os.fsencode(member.linkname)) > 4000:
            raise InvalidImage(f"the link {member.name[:80]!r} points nowhere")
        self._remove(path)
        os.symlink(member.linkname, path)  # noqa: PTH211
        self._tree.forget()
        self._made.add(path)
        _own(path, member)

    def _hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        parts = path_parts(member.linkname, "a hard link")
        if not parts:
            raise InvalidImage(f"the hard link {member.name[:80]!r} points at the root")
        source = f"{self._tree.folder(parts[:-1])}/{parts[-1]}"
        mode = _mode_of(source)
        if mode is None or stat.S_ISDIR(mode):
            raise InvalidImage(
                f"the hard link {member.name[:80]!r} points at {member.linkname[:80]!r}, which is no file"
            )
        if source == path:
            return
        self._remove(path)
        os.link(source, path, follow_symlinks=False)
        self._made.add(path)

    def _device(self, parts: list[str], member: tarfile.TarInfo) -> None:
        if parts[0] == "dev" or member.isfifo():
            return  # old base images have a few; the machine's /dev is its own, and nobody would be at a pipe's end
        raise InvalidImage(f"a layer has the device {member.name[:80]!r}; images have none outside /dev")

    # --- what is in the way -------------------------------------------------------------------------------------------

    def _white_out(self, folder: str, name: str) -> None:
        if name in ("", ".", "..") or "/" in name:
            raise InvalidImage(f"a layer has a whiteout of {name[:80]!r}")
        path = f"{folder}/{name}"
        if path not in self._made:
            self._remove(path, keep_made=True)

    def _clear(self, folder: str) -> None:
        """Empty a folder of what earlier layers put there."""
        for name in os.listdir(folder):  # noqa: PTH208
            self._remove(f"{folder}/{name}", keep_made=True)

    def _remove(self, path: str, *, keep_made: bool = False) -> None:
        mode = _mode_of(path)
        if mode is None or (keep_made and path in self._made and not stat.S_ISDIR(mode)):
            return
        if not stat.S_ISDIR(mode):
            os.unlink(path)  # noqa: PTH108
            if stat.S_ISLNK(mode):
                self._tree.forget()
            return
        self._tree.forget()
        if not keep_made:
            shutil.rmtree(path)
            return
        self._clear(path)
        if path not in self._made:
            with contextlib.suppress(OSError):  # it holds what this layer made
                os.rmdir(path)  # noqa: PTH106

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        self._made.add(path)
        _own(path, member)
        os.chmod(path, member.mode & _MODES)  # noqa: PTH101


def _mode_of(path: str) -> int | None:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return None


def _own(path: str, member: tarfile.TarInfo) -> None:
    if os.geteuid() == 0:
        try:
            os.chown(path, member.uid, member.gid, follow_symlinks=False)
        except (OSError, OverflowError):
            raise InvalidImage(f"{member.name[:80]!r} belongs to user {member.uid}, which cannot be here") from None
