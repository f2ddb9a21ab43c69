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
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Literal

from pathspec import GitIgnoreSpec

from belljar.errors import InvalidScript
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
_MOST_PATTERN_BYTES = 64 * 1024
_MOST_PATTERNS = 1000
#: Patterns become regular expressions, whose time grows with the power of the number of stars.
_MOST_STARS = 4
_MOST_STARS_IN_NAME = 3
#: With more stars than this a pattern may take tens of milliseconds for one long path, and there may be only some.
_CHEAP_STARS = 2
_MOST_COSTLY = 100
_MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file, folder or link of the folder, by its path below it."""

    name: str
    kind: Literal["file", "folder", "link"]
    #: Where it is on this host.
    path: str
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

        `check` is called for every entry that is looked at: it raises to end that.
        """
        _scan(source, "")  # a folder that cannot be read is told as that
        patterns = _Patterns([*_ignore_file(source), *self.exclude, *(f"!{pattern}" for pattern in self.include)])
        todo = [""]
        while todo:
            above = todo.pop()
            found = _scan(source, above)
            names = frozenset(entry.name for entry in found)
            for entry in found:
                name = f"{above}/{entry.name}" if above else entry.name
                _check_name(name)
                check()
                if patterns.leave_out(name, entry, names):
                    if entry.name != IGNORE_FILE:
                        self.left_out.append(name)
                    continue
                selected = _entry(name, entry)
                if selected.kind == "folder":
                    todo.append(name)
                yield selected

    def sentence(self) -> str | None:
        """What was left out, in a sentence; None when nothing was."""
        if not self.left_out:
            return None
        names = sorted(self.left_out, key=lambda name: (name.count("/"), name))
        shown, more = names[:_MOST_SHOWN], len(names) - _MOST_SHOWN
        return f"left out: {', '.join(shown)}{f' and {more} more' if more > 0 else ''} (--include NAME sends it)"


def _stars(line: str) -> tuple[int, int]:
    """How many runs of stars a pattern has, and how many at most within one name."""
    names = [len(re.findall(r"\*+", name)) for name in line.split("/")]
    return (0, 0) if line.startswith("#") else (sum(names), max(names))


class _Patterns:
    """The patterns of the caller, and where none fits, what is left out by default."""

    def __init__(self, lines: Sequence[str]) -> None:
        if len(lines) > _MOST_PATTERNS:
            raise InvalidScript(f"there are over {_MOST_PATTERNS} patterns for what to leave out; use fewer")
        stars = [_stars(line) for line in lines]
        for line, (total, in_name) in zip(lines, stars, strict=True):
            if total > _MOST_STARS or in_name > _MOST_STARS_IN_NAME:
                most = f"over {_MOST_STARS} stars, or over {_MOST_STARS_IN_NAME} in one name"
                raise InvalidScript(f"the pattern {line[:80]!r} has {most}; use several patterns")
        if sum(total > _CHEAP_STARS for total, _ in stars) > _MOST_COSTLY:
            raise InvalidScript(f"there are over {_MOST_COSTLY} patterns with over {_CHEAP_STARS} stars; use fewer")
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except (ValueError, RecursionError) as error:
            raise InvalidScript(f"a pattern cannot be read: {error}; see gitignore(5)") from None

    def leave_out(self, name: str, entry: os.DirEntry[str], beside: frozenset[str]) -> bool:
        is_folder = entry.is_dir(follow_symlinks=False)
        decided = self._spec.check_file(f"{name}/" if is_folder else name).include
        if decided is not None:
            return decided
        return entry.name in _MADE_BY_TOOLS or (is_folder and _is_made_by_tools(entry, beside))


def _is_made_by_tools(entry: os.DirEntry[str], beside: frozenset[str]) -> bool:
    if _BUILD_OUTPUTS.get(entry.name, frozenset[str]()) & beside:
        return True
    if any(os.path.lexists(f"{entry.path}/{mark}") for mark in _ENVIRONMENT_MARKS):
        return True
    try:
        with _open(f"{entry.path}/CACHEDIR.TAG") as tag:
            return tag.read(len(_CACHE_TAG)) == _CACHE_TAG
    except OSError:
        return False


def _ignore_file(source: Path) -> list[str]:
    try:
        with _open(str(source / IGNORE_FILE)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InvalidScript(f"{IGNORE_FILE} is no regular file; replace it with one")
            data = file.read(_MOST_PATTERN_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InvalidScript(f"{IGNORE_FILE} cannot be read: {error.strerror}") from None
    if len(data) > _MOST_PATTERN_BYTES:
        raise InvalidScript(f"{IGNORE_FILE} has over {_MOST_PATTERN_BYTES // 1024} KB; shorten it")
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InvalidScript(f"{IGNORE_FILE} is not UTF-8; save it as UTF-8") from None


def _scan(source: Path, above: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(source / above) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(above or str(source), error) from None


def _check_name(name: str) -> None:
    last = name.rpartition("/")[2]
    try:
        too_long = len(last.encode()) > MAX_NAME_BYTES
    except UnicodeEncodeError:
        raise InvalidScript(f"the script cannot hold {name[:80]!r}, which is not UTF-8; rename it") from None
    if too_long:
        raise InvalidScript(f"the script cannot hold {name[:80]!r}, which is too long; rename it")


def _entry(name: str, entry: os.DirEntry[str]) -> Entry:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode):
        return Entry(name=name, kind="folder", path=entry.path)
    if stat.S_ISLNK(mode):
        target = os.readlink(entry.path)  # noqa: PTH115 - the target as it is written
        return Entry(name=name, kind="link", path=entry.path, target=target)
    if stat.S_ISREG(mode):
        return Entry(name=name, kind="file", path=entry.path, executable=bool(mode & 0o111))
    raise InvalidScript(
        f"{name[:80]!r} is a device, pipe or socket; a script holds files, folders and links only "
        f"(leave it out with --exclude)"
    )


def open_entry(entry: Entry) -> FileIO:
    """The content of a file, unbuffered; a link that took its place is not followed. Raises InvalidScript."""
    try:
        return _open(entry.path)
    except OSError as error:
        raise _unreadable(entry.name, error) from None


def _open(path: str) -> FileIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - of a descriptor


def _unreadable(name: str, error: OSError) -> InvalidScript:
    return InvalidScript(f"cannot read {name[-200:]}: {error.strerror}; leave it out with --exclude")
