"""The files of a script on the host, before they are packed.

Every file of an upload goes through `Tree`, which validates its name, counts it, and writes below its root only. Links
are created last, so nothing is ever written through one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.model.errors import InvalidScript
from belljar.scripts.limits import ExtractionBudget

#: Linux allows 255; mkfs.erofs of erofs-utils 1.5 fails at those.
MAX_NAME_BYTES = 254
MAX_PATH_BYTES = 1024
#: Links followed for one path before it counts as a loop, as in Linux (path_resolution(7)).
_MAX_HOPS = 40
#: Path components that the links of one script may have together; bounds the time to resolve them.
_MAX_STEPS = 200_000
_DRIVE = re.compile(r"[A-Za-z]:")
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class File:
    """A regular file: its size in bytes, its executable bit, its content's digest."""

    size: int
    executable: bool
    sha256: str


def member_path(name: str, max_depth: int) -> str:
    """Return an upload's name as a path relative to the tree's root; empty for the root itself.

    Raises InvalidScript for a name that leaves the tree, that operating systems interpret differently, or that is too
    long.
    """
    for invalid, reason in (
        (name == "", "is empty"),
        ("\0" in name, "contains a NUL"),
        ("\\" in name, "contains a backslash"),
    ):
        if invalid:
            raise _invalid_member(name, reason)
    if name.startswith("/"):
        raise _invalid_member(name, "is an absolute path")
    if _DRIVE.match(name):
        raise _invalid_member(name, "begins with a drive letter")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _invalid_member(name, "contains ..")
    if len(parts) > max_depth:
        raise _invalid_member(name, f"is more than {max_depth} folders deep")
    try:
        longest = max((len(part.encode()) for part in parts), default=0)
    except UnicodeEncodeError:
        raise _invalid_member(name, "is not UTF-8") from None
    path = "/".join(parts)
    if longest > MAX_NAME_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        raise _invalid_member(name, f"is too long ({MAX_NAME_BYTES} bytes a name, {MAX_PATH_BYTES} a path)")
    return path


class Tree:
    """The files, folders and links below `root`, an empty folder that the caller owns and removes."""

    def __init__(self, root: Path, budget: ExtractionBudget) -> None:
        self.root = root
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()
        self._budget = budget
        self._steps = 0
        root.chmod(0o755)

    @property
    def size_bytes(self) -> int:
        """The sizes of all files together."""
        return sum(file.size for file in self.files.values())

    def check(self) -> None:
        """Raise InvalidScript when extraction has taken too long or was cancelled."""
        self._budget.check()

    def add_file(self, name: str, chunks: Iterable[bytes], *, executable: bool = False) -> None:
        """Write a file. Raises InvalidScript for the name, TooLarge for the bytes, OSError."""
        path = self._claim(name)
        digest = hashlib.sha256()
        size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self.root / path, flags, 0o600), "wb", buffering=0) as out:  # noqa: PTH123 - of a descriptor
            for chunk in chunks:
                self._budget.count_bytes(len(chunk))
                _write_all(out.fileno(), chunk)
                digest.update(chunk)
                size += len(chunk)
            os.fchmod(out.fileno(), 0o755 if executable else 0o644)
        self.files[path] = File(size, executable, digest.hexdigest())

    def add_copy(self, name: str, source: str) -> None:
        """Add a hard link as a copy of an earlier file. Raises InvalidScript when there is no such file."""
        path = member_path(source, self._budget.limits.max_depth)
        file = self.files.get(path)
        if file is None:
            raise _invalid_member(
                name, f"is a hard link to {source[:80]!r}, which is not an earlier file of the archive"
            )
        self.add_file(name, self.chunks(path), executable=file.executable)

    def add_folder(self, name: str) -> None:
        """Add a folder unless it exists. Raises InvalidScript, OSError."""
        path = member_path(name, self._budget.limits.max_depth)
        if path:
            self._make_folder(path)

    def add_link(self, name: str, target: str) -> None:
        """Record a symbolic link; `create_links` checks its target and creates it. Raises InvalidScript."""
        if not target or "\0" in target or target.startswith("/"):
            raise _invalid_member(name, f"is a link to {target[:80]!r}; links must be relative and stay inside")
        try:
            length = len(target.encode())
        except UnicodeEncodeError:
            raise _invalid_member(name, "is a link whose target is not UTF-8") from None
        max_folders = 3 * self._budget.limits.max_depth
        if length > MAX_PATH_BYTES or target.count("/") > max_folders:
            raise _invalid_member(name, f"is a link of over {MAX_PATH_BYTES} bytes or {max_folders} folders")
        self.links[self._claim(name)] = target

    def strip_folder(self) -> bool:
        """Make the only top folder the root, as in archives of a repository; return whether there was one."""
        tops = {path.split("/", 1)[0] for path in (*self.files, *self.links, *self.folders)}
        if len(tops) != 1 or not tops <= self.folders:
            return False
        top = tops.pop()
        start = len(top) + 1
        self.root = self.root / top
        self.files = {path[start:]: file for path, file in self.files.items()}
        self.links = {path[start:]: target for path, target in self.links.items()}
        self.folders = {path[start:] for path in self.folders if path != top}
        return True

    def create_links(self) -> None:
        """Create the recorded links. Raises InvalidScript when one leaves the tree or loops, OSError."""
        for path in self.links:
            self.resolve(path)
        for path, target in self.links.items():
            (self.root / path).symlink_to(target)

    def is_file(self, path: str) -> bool:
        """Return whether this path is a file or a link to one. Raises InvalidScript for a link that leads out."""
        return self.resolve(path) in self.files

    def is_folder(self, path: str) -> bool:
        """Return whether this path is a folder or a link to one. Raises InvalidScript for a link that leads out."""
        return self.resolve(path) in self.folders

    def head(self, path: str, count: int) -> bytes:
        """Return the first `count` bytes of a file, links followed. Raises InvalidScript, OSError."""
        return next(self.chunks(self.resolve(path), count), b"")

    def chunks(self, path: str, count: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the content of a file of this tree that is not a link. Raises OSError."""
        with (self.root / path).open("rb") as source:
            while chunk := source.read(count):
                yield chunk

    def resolve(self, path: str) -> str:
        """Return the path with its links followed as in Linux, whether or not it exists.

        Raises InvalidScript for a link that leaves the tree or loops.
        """
        done = ""
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise _invalid_member(path, "is a link that leads out of the script")
                done = done.rpartition("/")[0]
                continue
            here = f"{done}/{part}" if done else part
            target = self.links.get(here)
            if target is None:
                done = here
                continue
            hops += 1
            self._budget.check()
            if hops > _MAX_HOPS:
                raise _invalid_member(path, "is a link in a loop")
            parts = target.split("/")
            self._steps += len(parts)
            if self._steps > _MAX_STEPS:
                raise InvalidScript("the script's links are too many or too long; leave some out")
            todo += parts[::-1]
        return done

    def digest(self, language: str, entrypoint: str) -> str:
        """Return the script's id: the sha256 over language, entrypoint and content, each field with its length."""
        fields = ["belljar script 1", language, entrypoint]
        for path in sorted({*self.files, *self.links, *self.folders}):
            fields += [path, *self._digest_fields(path)]
        digest = hashlib.sha256()
        for field in fields:
            data = field.encode()
            digest.update(b"%d:%s," % (len(data), data))
        return digest.hexdigest()

    def _digest_fields(self, path: str) -> tuple[str, str]:
        if path in self.links:
            return "link", self.links[path]
        if path in self.folders:
            return "folder", ""
        file = self.files[path]
        return ("755" if file.executable else "644"), file.sha256

    def _claim(self, name: str) -> str:
        """Return the path for a new file or link, and create its parent folders."""
        path = member_path(name, self._budget.limits.max_depth)
        if not path or path in self.folders:
            raise _invalid_member(name, "is both a file and a folder")
        if path in self.files or path in self.links:
            raise _invalid_member(name, "occurs twice")
        parent, _, _ = path.rpartition("/")
        if parent:
            self._make_folder(parent)
        self._budget.count_member()
        return path

    def _make_folder(self, path: str) -> None:
        missing = []
        while path and path not in self.folders:
            if path in self.files or path in self.links:
                raise _invalid_member(path, "is both a folder and something else")
            missing.append(path)
            path, _, _ = path.rpartition("/")
        for folder in reversed(missing):
            self._budget.count_member()
            (self.root / folder).mkdir()
            (self.root / folder).chmod(0o755)  # independent of the umask
            self.folders.add(folder)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _invalid_member(name: str, reason: str) -> InvalidScript:
    shown = name if len(name) <= 80 else name[:77] + "..."
    return InvalidScript(f"invalid file in the script: {shown!r} {reason}; rename it or leave it out")
