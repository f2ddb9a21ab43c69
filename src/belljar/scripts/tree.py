"""The files of a script on the host, before they are packed.

Everything that an upload names goes through `Tree`: it decides which names may be, counts, and writes below its root
alone. Links are written last, so that nothing is ever written through one.
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
#: Links followed for one path before it counts as a circle, as Linux does (path_resolution(7)).
_MAX_HOPS = 40
#: Folders that the links of one script may lead through, all together: what bounds the time that they take.
_MAX_STEPS = 200_000
_DRIVE = re.compile(r"[A-Za-z]:")
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class File:
    size: int
    executable: bool
    sha256: str


def member_path(name: str, max_depth: int) -> str:
    """The path below the tree's root that an upload's name means; empty for the root itself.

    Raises InvalidScript for a name that leaves the tree, that systems read differently, or that is too long.
    """
    for wrong, why in ((name == "", "is empty"), ("\0" in name, "holds a NUL"), ("\\" in name, "holds a backslash")):
        if wrong:
            raise _refused(name, why)
    if name.startswith("/"):
        raise _refused(name, "is an absolute path")
    if _DRIVE.match(name):
        raise _refused(name, "begins with a drive letter")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(name, "climbs out with ..")
    if len(parts) > max_depth:
        raise _refused(name, f"is more than {max_depth} folders deep")
    try:
        longest = max((len(part.encode()) for part in parts), default=0)
    except UnicodeEncodeError:
        raise _refused(name, "is not UTF-8") from None
    path = "/".join(parts)
    if longest > MAX_NAME_BYTES or len(path.encode()) > MAX_PATH_BYTES:
        raise _refused(name, f"is too long ({MAX_NAME_BYTES} bytes a name, {MAX_PATH_BYTES} a path)")
    return path


class Tree:
    """Files, folders and links below `root`, an empty folder that the caller owns and removes."""

    def __init__(self, root: Path, allowance: ExtractionBudget) -> None:
        self.root = root
        self.files: dict[str, File] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()
        self._allowance = allowance
        self._steps = 0
        root.chmod(0o755)

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def check(self) -> None:
        """Raises InvalidScript when it has taken too long, or is to be given up."""
        self._allowance.check()

    def add_file(self, name: str, chunks: Iterable[bytes], *, executable: bool = False) -> None:
        """Write a file. Raises InvalidScript for the name, TooLarge for the bytes, OSError."""
        path = self._claim(name)
        digest = hashlib.sha256()
        size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self.root / path, flags, 0o600), "wb", buffering=0) as out:  # noqa: PTH123 - of a descriptor
            for chunk in chunks:
                self._allowance.take_bytes(len(chunk))
                _write_all(out.fileno(), chunk)
                digest.update(chunk)
                size += len(chunk)
            os.fchmod(out.fileno(), 0o755 if executable else 0o644)
        self.files[path] = File(size, executable, digest.hexdigest())

    def add_copy(self, name: str, source: str) -> None:
        """A hard link: a second name of a file that is already there. Raises InvalidScript when it is not."""
        path = member_path(source, self._allowance.limits.max_depth)
        file = self.files.get(path)
        if file is None:
            raise _refused(name, f"is a hard link to {source[:80]!r}, which is no file before it in the archive")
        self.add_file(name, self.chunks(path), executable=file.executable)

    def add_folder(self, name: str) -> None:
        """A folder, which may be there already. Raises InvalidScript, OSError."""
        path = member_path(name, self._allowance.limits.max_depth)
        if path:
            self._make_folder(path)

    def add_link(self, name: str, target: str) -> None:
        """Note a symbolic link; `seal` checks where it leads and makes it. Raises InvalidScript."""
        if not target or "\0" in target or target.startswith("/"):
            raise _refused(name, f"is a link to {target[:80]!r}; links must be relative and stay inside")
        try:
            length = len(target.encode())
        except UnicodeEncodeError:
            raise _refused(name, "is a link whose target is not UTF-8") from None
        most = 3 * self._allowance.limits.max_depth
        if length > MAX_PATH_BYTES or target.count("/") > most:
            raise _refused(name, f"is a link of over {MAX_PATH_BYTES} bytes or {most} folders")
        self.links[self._claim(name)] = target

    def strip_folder(self) -> bool:
        """When one folder holds everything, as in archives of a repository, make it the root; says whether it did."""
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

    def seal(self) -> None:
        """Make the links. Raises InvalidScript when one leads out of the tree or in a circle, OSError."""
        for path in self.links:
            self.resolve(path)
        for path, target in self.links.items():
            (self.root / path).symlink_to(target)

    def is_file(self, path: str) -> bool:
        """Whether this path is a file, or a link to one. Raises InvalidScript for a link that leads out."""
        return self.resolve(path) in self.files

    def is_folder(self, path: str) -> bool:
        """Whether this path is a folder, or a link to one. Raises InvalidScript for a link that leads out."""
        return self.resolve(path) in self.folders

    def head(self, path: str, count: int) -> bytes:
        """The first bytes of a file or of what a link to one leads to."""
        return next(self.chunks(self.resolve(path), count), b"")

    def chunks(self, path: str, count: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The content of a file of this tree, which is no link."""
        with (self.root / path).open("rb") as source:
            while chunk := source.read(count):
                yield chunk

    def resolve(self, path: str) -> str:
        """The path with its links followed as Linux would, whether or not something is there."""
        done = ""
        todo = path.split("/")[::-1]
        hops = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise _refused(path, "is a link that leads out of the script")
                done = done.rpartition("/")[0]
                continue
            here = f"{done}/{part}" if done else part
            target = self.links.get(here)
            if target is None:
                done = here
                continue
            hops += 1
            self._allowance.check()
            if hops > _MAX_HOPS:
                raise _refused(path, "is a link in a circle")
            parts = target.split("/")
            self._steps += len(parts)
            if self._steps > _MAX_STEPS:
                raise InvalidScript("the script's links are too many and too long; leave some out")
            todo += parts[::-1]
        return done

    def digest(self, language: str, entrypoint: str) -> str:
        """The script's id: sha256 over everything that decides what runs, each field with its length before it."""
        fields = ["belljar script 1", language, entrypoint]
        for path in sorted({*self.files, *self.links, *self.folders}):
            fields += [path, *self._described(path)]
        digest = hashlib.sha256()
        for field in fields:
            data = field.encode()
            digest.update(b"%d:%s," % (len(data), data))
        return digest.hexdigest()

    def _described(self, path: str) -> tuple[str, str]:
        if path in self.links:
            return "link", self.links[path]
        if path in self.folders:
            return "folder", ""
        file = self.files[path]
        return ("755" if file.executable else "644"), file.sha256

    def _claim(self, name: str) -> str:
        """The path for a new file or link; makes the folders above it."""
        path = member_path(name, self._allowance.limits.max_depth)
        if not path or path in self.folders:
            raise _refused(name, "is both a file and a folder")
        if path in self.files or path in self.links:
            raise _refused(name, "is there twice")
        above, _, _ = path.rpartition("/")
        if above:
            self._make_folder(above)
        self._allowance.take_member()
        return path

    def _make_folder(self, path: str) -> None:
        missing = []
        while path and path not in self.folders:
            if path in self.files or path in self.links:
                raise _refused(path, "is both a folder and something else")
            missing.append(path)
            path, _, _ = path.rpartition("/")
        for folder in reversed(missing):
            self._allowance.take_member()
            (self.root / folder).mkdir()
            (self.root / folder).chmod(0o755)  # whatever the umask is
            self.folders.add(folder)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _refused(name: str, why: str) -> InvalidScript:
    shown = name if len(name) <= 80 else name[:77] + "..."
    return InvalidScript(f"the script cannot hold {shown!r}, which {why}; rename it or leave it out")
