"""Select the files of a user's folder that belong to the script, for local jobs and for uploads alike.

By default files of tools are excluded: version control (its configuration may contain tokens), virtual environments
(they belong to this host), caches. `.belljarignore` at the folder's top, --exclude and --include add patterns in the
syntax of gitignore(5); the last matching pattern decides.
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
#: Names that are excluded in every folder.
_TOOL_NAMES = frozenset(
    {
        *(".git", ".hg", ".svn", ".jj", ".bzr", "_darcs"),
        *("__pycache__", ".venv", ".tox", ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"),
        *(".ipynb_checkpoints", ".gradle", ".DS_Store", "Thumbs.db", IGNORE_FILE),
    }
)
#: A folder of this name is build output when one of these files is beside it.
_BUILD_OUTPUTS = {
    "target": frozenset({"Cargo.toml", "pom.xml"}),
    "build": frozenset({"build.gradle", "build.gradle.kts"}),
}
#: Names that occur in virtual environments of venv and virtualenv, and of conda.
_ENVIRONMENT_FILES = ("pyvenv.cfg", "conda-meta")
#: The first bytes of a file CACHEDIR.TAG, Cache Directory Tagging Specification 0.6.
_CACHE_TAG = b"Signature: 8a477f597d28d172789f06886806bc55"
_MAX_PATTERN_BYTES = 64 * 1024
_MAX_PATTERNS = 1000
#: Patterns become regular expressions, whose time is polynomial with the number of stars as its degree.
_MAX_STARS = 4
_MAX_STARS_IN_NAME = 3
#: With more stars a pattern may take tens of milliseconds for one long path, so such patterns are limited in number.
_CHEAP_STARS = 2
_MAX_EXPENSIVE_PATTERNS = 100
_MAX_SHOWN = 5
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file, folder or link below the selected folder; `name` is its relative path."""

    name: str
    kind: Literal["file", "folder", "link"]
    #: A descriptor of the selected folder, open while it is iterated.
    root: int
    executable: bool = False
    #: A link's target, as stored in it.
    target: str = ""


@dataclass(kw_only=True, slots=True)
class Selection:
    """The caller's patterns for a folder; `entries` records the excluded names in `excluded`."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    excluded: list[str] = field(default_factory=list)

    def entries(self, source: Path, check: Callable[[], None] = lambda: None) -> Iterator[Entry]:
        """Yield the selected entries, each folder before its content.

        `check` is called for every entry and may raise to stop the iteration. No link below the folder is followed,
        even when one is created meanwhile: the folder may belong to another user.

        Raises InvalidScript for entries that cannot be read or selected, and for invalid patterns.
        """
        with _open_folder(source) as root:
            _scan(root, str(source))  # reports an unreadable folder before an unreadable ignore file
            patterns = _Patterns([*_ignore_file(root), *self.exclude, *(f"!{pattern}" for pattern in self.include)])
            pending = [""]
            while pending:
                parent = pending.pop()
                with _open_below(root, parent) as folder:
                    for name, entry in self._select(parent, folder, patterns, check):
                        selected = _entry(name, entry, root, folder)
                        if selected.kind == "folder":
                            pending.append(name)
                        yield selected

    def _select(
        self, parent: str, folder: int, patterns: _Patterns, check: Callable[[], None]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        entries = _scan(folder, parent)
        names = frozenset(entry.name for entry in entries)
        for entry in entries:
            name = f"{parent}/{entry.name}" if parent else entry.name
            _check_name(name)
            check()
            if not patterns.excludes(name, entry, names, folder):
                yield name, entry
            elif entry.name != IGNORE_FILE:
                self.excluded.append(name)

    def sentence(self) -> str | None:
        """Return a message that lists the excluded names, None when there are none."""
        if not self.excluded:
            return None
        names = sorted(self.excluded, key=lambda name: (name.count("/"), name))
        shown, more = names[:_MAX_SHOWN], len(names) - _MAX_SHOWN
        return f"left out: {', '.join(shown)}{f' and {more} more' if more > 0 else ''} (--include NAME sends it)"


def _count_stars(line: str) -> tuple[int, int]:
    """Return a pattern's number of runs of stars, in total and at most within one name."""
    names = [len(re.findall(r"\*+", name)) for name in line.split("/")]
    return (0, 0) if line.startswith("#") else (sum(names), max(names))


class _Patterns:
    """The caller's patterns, and the default exclusions for names that match none."""

    def __init__(self, lines: Sequence[str]) -> None:
        if len(lines) > _MAX_PATTERNS:
            raise InvalidScript(f"there are over {_MAX_PATTERNS} patterns to include and exclude; use fewer")
        stars = [_count_stars(line) for line in lines]
        for line, (total, in_name) in zip(lines, stars, strict=True):
            if total > _MAX_STARS or in_name > _MAX_STARS_IN_NAME:
                raise InvalidScript(
                    f"the pattern {line[:80]!r} has over {_MAX_STARS} stars, or over {_MAX_STARS_IN_NAME} in one name; "
                    "use several patterns"
                )
        if sum(total > _CHEAP_STARS for total, _ in stars) > _MAX_EXPENSIVE_PATTERNS:
            raise InvalidScript(
                f"there are over {_MAX_EXPENSIVE_PATTERNS} patterns with over {_CHEAP_STARS} stars; use fewer"
            )
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except (ValueError, RecursionError) as error:
            raise InvalidScript(f"invalid pattern: {error}; see gitignore(5)") from None

    def excludes(self, name: str, entry: os.DirEntry[str], siblings: frozenset[str], folder: int) -> bool:
        is_folder = entry.is_dir(follow_symlinks=False)
        matched = self._spec.check_file(f"{name}/" if is_folder else name).include
        if matched is not None:
            return matched
        return entry.name in _TOOL_NAMES or (is_folder and _is_tool_folder(entry.name, siblings, folder))


def _is_tool_folder(name: str, siblings: frozenset[str], folder: int) -> bool:
    """Return whether a folder is build output, a virtual environment or a cache."""
    if _BUILD_OUTPUTS.get(name, frozenset[str]()) & siblings:
        return True
    try:
        inside = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        return False
    try:
        if any(_exists(name, inside) for name in _ENVIRONMENT_FILES):
            return True
        with _open("CACHEDIR.TAG", inside) as tag:
            return tag.read(len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False
    finally:
        os.close(inside)


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True


def _ignore_file(root: int) -> list[str]:
    try:
        with _open(IGNORE_FILE, root) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidScript(f"{IGNORE_FILE} is not a regular file; replace it with one")
            data = file.read(_MAX_PATTERN_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidScript(f"{IGNORE_FILE} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_PATTERN_BYTES:
        raise InvalidScript(f"{IGNORE_FILE} is over {_MAX_PATTERN_BYTES // 1024} KB; shorten it")
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidScript(f"{IGNORE_FILE} is not UTF-8; save it as UTF-8") from None


@contextmanager
def _open_folder(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError as error:
        raise _unreadable(str(folder), error) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _open_below(root: int, name: str) -> Iterator[int]:
    """Open a folder below the root without following links. Raises InvalidScript."""
    folder = os.dup(root)
    try:
        for part in name.split("/") if name else ():
            parent = folder
            folder = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
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
        raise InvalidScript(f"invalid file in the script: {name[:80]!r} is not UTF-8; rename it") from None
    if too_long:
        raise InvalidScript(f"invalid file in the script: {name[:80]!r} is too long; rename it")


def _entry(name: str, entry: os.DirEntry[str], root: int, folder: int) -> Entry:
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
        target = os.readlink(entry.name, dir_fd=folder) if stat.S_ISLNK(mode) else ""
    except OSError as error:  # removed meanwhile
        raise _unreadable(name, error) from None
    if stat.S_ISDIR(mode):
        return Entry(name=name, kind="folder", root=root)
    if stat.S_ISLNK(mode):
        return Entry(name=name, kind="link", root=root, target=target)
    if stat.S_ISREG(mode):
        return Entry(name=name, kind="file", root=root, executable=bool(mode & 0o111))
    raise InvalidScript(
        f"{name[:80]!r} is a device, pipe or socket; a script has only files, folders and links "
        f"(leave it out with --exclude)"
    )


def open_entry(entry: Entry) -> FileIO:
    """Open a file of the folder unbuffered, without following links; call it during the iteration of `entries`.

    Raises InvalidScript.
    """
    parent, _, last = entry.name.rpartition("/")
    with _open_below(entry.root, parent) as folder:
        try:
            return _open(last, folder)
        except OSError as error:
            raise _unreadable(entry.name, error) from None


def _open(name: str, folder: int) -> FileIO:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - of a descriptor


def _unreadable(name: str, error: OSError) -> InvalidScript:
    return InvalidScript(f"cannot read {name[-200:]}: {error.strerror}; leave it out with --exclude")
