"""Which files of a user's folder make the script: the same for a job here and for an upload to a server.

Left out by default is what tools made and no job needs: version control (with the tokens that its configuration may
hold), virtual environments (of this host, useless in a machine), caches. `.belljarignore` at the folder's top,
--exclude and --include say more, in the syntax of gitignore(5); the last pattern that fits decides.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal

from pathspec import GitIgnoreSpec

from belljar.model.errors import InvalidScript
from belljar.scripts.tree import MAX_NAME_BYTES

IGNORE_FILE = ".belljarignore"
#: Names that are left out wherever they are.
_MADE_BY_TOOLS = frozenset(
    {
        *(".git", ".hg", ".svn", ".jj", ".bzr", "_darcs"),
        *("__pycache__", ".venv", ".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
        *(".ipynb_checkpoints", ".gradle", ".DS_Store", "Thumbs.db", IGNORE_FILE),
    }
)
#: A folder of this name is a build's output where one of these files lies beside it.
_BUILD_OUTPUTS = {
    "target": frozenset({"Cargo.toml", "pom.xml"}),
    "build": frozenset({"build.gradle", "build.gradle.kts"}),
}
#: What marks a virtual environment, by venv and virtualenv, and by conda.
_ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
#: How a file CACHEDIR.TAG begins, Cache Directory Tagging Specification 0.6.
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
_MAX_PATTERN_BYTES = 64 * 1024
_MAX_PATTERNS = 1000
#: Patterns become regular expressions, whose time grows with the power of the number of stars.
_MAX_STARS = 4
_MAX_STARS_IN_NAME = 3
#: With more stars than this a pattern may take tens of milliseconds for one long path, and there may be only some.
_CHEAP_STARS = 2
_MAX_COSTLY = 100
_MAX_SHOWN = 5
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file, folder or link of the folder, by its path below it."""

    name: str
    kind: Literal["file", "folder", "link"]
    #: A descriptor of the folder, which is open while the folder is gone through.
    root: int
    executable: bool = False
    #: Where a link leads, as it is written.
    target: str = ""


@dataclass(kw_only=True, slots=True)
class Selection:
    """What the caller says about a folder; `left_out` is filled while `entries` goes through one."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    left_out: list[str] = field(default_factory=list)

    def entries(self, source: Path, check: Callable[[], None] = lambda: None) -> Iterator[Entry]:
        """The selected entries, each folder before what is in it. Raises InvalidScript.

        `check` is called for every entry that is looked at: it raises to end that. No link below the folder is
        followed, whoever puts one there meanwhile: the folder may be another user's.
        """
        with _opened(source) as root:
            _scan(root, str(source))  # a folder that cannot be read is told as that
            patterns = _Patterns([*_ignore_file(root), *self.exclude, *(f"!{pattern}" for pattern in self.include)])
            todo = [""]
            while todo:
                above = todo.pop()
                with _opened_below(root, above) as folder:
                    for name, entry in self._wanted(above, folder, patterns, check):
                        selected = _entry(name, entry, root, folder)
                        if selected.kind == "folder":
                            todo.append(name)
                        yield selected

    def _wanted(
        self, above: str, folder: int, patterns: _Patterns, check: Callable[[], None]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        found = _scan(folder, above)
        names = frozenset(entry.name for entry in found)
        for entry in found:
            name = f"{above}/{entry.name}" if above else entry.name
            _check_name(name)
            check()
            if not patterns.leave_out(name, entry, names, folder):
                yield name, entry
            elif entry.name != IGNORE_FILE:
                self.left_out.append(name)

    def sentence(self) -> str | None:
        """What was left out, in a sentence; None when nothing was."""
        if not self.left_out:
            return None
        names = sorted(self.left_out, key=lambda name: (name.count("/"), name))
        shown, more = names[:_MAX_SHOWN], len(names) - _MAX_SHOWN
        return f"left out: {', '.join(shown)}{f' and {more} more' if more > 0 else ''} (--include NAME sends it)"


def _stars(line: str) -> tuple[int, int]:
    """How many runs of stars a pattern has, and how many at most within one name."""
    names = [len(re.findall(r"\*+", name)) for name in line.split("/")]
    return (0, 0) if line.startswith("#") else (sum(names), max(names))


class _Patterns:
    """The patterns of the caller, and where none fits, what is left out by default."""

    def __init__(self, lines: Sequence[str]) -> None:
        if len(lines) > _MAX_PATTERNS:
            raise InvalidScript(f"there are over {_MAX_PATTERNS} patterns for what to leave out; use fewer")
        stars = [_stars(line) for line in lines]
        for line, (total, in_name) in zip(lines, stars, strict=True):
            if total > _MAX_STARS or in_name > _MAX_STARS_IN_NAME:
                most = f"over {_MAX_STARS} stars, or over {_MAX_STARS_IN_NAME} in one name"
                raise InvalidScript(f"the pattern {line[:80]!r} has {most}; use several patterns")
        if sum(total > _CHEAP_STARS for total, _ in stars) > _MAX_COSTLY:
            raise InvalidScript(f"there are over {_MAX_COSTLY} patterns with over {_CHEAP_STARS} stars; use fewer")
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except (ValueError, RecursionError) as error:
            raise InvalidScript(f"a pattern cannot be read: {error}; see gitignore(5)") from None

    def leave_out(self, name: str, entry: os.DirEntry[str], beside: frozenset[str], folder: int) -> bool:
        is_folder = entry.is_dir(follow_symlinks=False)
        decided = self._spec.check_file(f"{name}/" if is_folder else name).include
        if decided is not None:
            return decided
        return entry.name in _MADE_BY_TOOLS or (is_folder and _is_made_by_tools(entry.name, beside, folder))


def _is_made_by_tools(name: str, beside: frozenset[str], folder: int) -> bool:
    if _BUILD_OUTPUTS.get(name, frozenset[str]()) & beside:
        return True
    try:
        inside = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        return False
    try:
        if any(_is_there(mark, inside) for mark in _ENVIRONMENT_MARKS):
            return True
        with _open("CACHEDIR.TAG", inside) as tag:
            return tag.read(len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False
    finally:
        os.close(inside)


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _ignore_file(root: int) -> list[str]:
    try:
        with _open(IGNORE_FILE, root) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidScript(f"{IGNORE_FILE} is no regular file; replace it with one")
            data = file.read(_MAX_PATTERN_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidScript(f"{IGNORE_FILE} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_PATTERN_BYTES:
        raise InvalidScript(f"{IGNORE_FILE} has over {_MAX_PATTERN_BYTES // 1024} KB; shorten it")
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidScript(f"{IGNORE_FILE} is not UTF-8; save it as UTF-8") from None


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError as error:
        raise _unreadable(str(folder), error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened_below(root: int, name: str) -> Iterator[int]:
    """A descriptor of a folder below the root, to which no link leads. Raises InvalidScript."""
    folder = os.dup(root)
    try:
        for part in name.split("/") if name else ():
            above = folder
            folder = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
            os.close(above)
    except OSError as error:
        os.close(folder)
        raise _unreadable(name, error) from None
    try:
        yield folder
    finally:
        os.close(folder)


def _scan(folder: int, name: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(name, error) from None


def _check_name(name: str) -> None:
    last = name.rpartition("/")[2]
    try:
        too_long = len(last.encode()) > MAX_NAME_BYTES
    except UnicodeEncodeError:
        raise InvalidScript(f"the script cannot hold {name[:80]!r}, which is not UTF-8; rename it") from None
    if too_long:
        raise InvalidScript(f"the script cannot hold {name[:80]!r}, which is too long; rename it")


def _entry(name: str, entry: os.DirEntry[str], root: int, folder: int) -> Entry:
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
        target = os.readlink(entry.name, dir_fd=folder) if stat.S_ISLNK(mode) else ""
    except OSError as error:  # it has gone meanwhile
        raise _unreadable(name, error) from None
    if stat.S_ISDIR(mode):
        return Entry(name=name, kind="folder", root=root)
    if stat.S_ISLNK(mode):
        return Entry(name=name, kind="link", root=root, target=target)
    if stat.S_ISREG(mode):
        return Entry(name=name, kind="file", root=root, executable=bool(mode & 0o111))
    raise InvalidScript(
        f"{name[:80]!r} is a device, pipe or socket; a script holds files, folders and links only "
        f"(leave it out with --exclude)"
    )


def open_entry(entry: Entry) -> FileIO:
    """The content of a file, unbuffered; a link that took its place, or a folder's, is not followed.

    While its folder is gone through. Raises InvalidScript.
    """
    above, _, last = entry.name.rpartition("/")
    with _opened_below(entry.root, above) as folder:
        try:
            return _open(last, folder)
        except OSError as error:
            raise _unreadable(entry.name, error) from None


def _open(name: str, folder: int) -> FileIO:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - of a descriptor


def _unreadable(name: str, error: OSError) -> InvalidScript:
    return InvalidScript(f"cannot read {name[-200:]}: {error.strerror}; leave it out with --exclude")
