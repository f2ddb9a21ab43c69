"""Removing many files and folders of a local file system. Blocks: for a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Extent:
    """How many things there are, and their bytes together."""

    count: int = 0
    size_bytes: int = 0

    def __add__(self, other: Extent) -> Extent:
        return Extent(self.count + other.count, self.size_bytes + other.size_bytes)


NOTHING = Extent()


def remove_folders(folders: Iterable[Path], top: Path | None = None) -> Extent:
    """Remove folders with all that is in them, following no link; returns what files that were. Raises OSError.

    Those above them that are empty then go as well, up to `top`, which stays. Several at once, in threads of its own: a
    disk answers more requests together than one after the other.
    """
    with ThreadPoolExecutor(_AT_ONCE, "belljar-removes") as threads:
        return sum(threads.map(lambda folder: _remove_upwards(folder, top), folders), NOTHING)


def _remove_upwards(folder: Path, top: Path | None) -> Extent:
    removed = _remove_folder(folder)
    for above in folder.parents if top is not None else ():
        if above == top or not _remove_if_empty(above):
            break
    return removed


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # not empty, or gone
        return False
    return True


def _remove_folder(folder: Path) -> Extent:
    count = size_bytes = 0
    for root, names, files in os.walk(folder, topdown=False):
        for name in (*files, *names):
            path = Path(root, name)
            with suppress(FileNotFoundError):  # somebody else removes too
                about = path.lstat()
                if stat.S_ISDIR(about.st_mode):
                    path.rmdir()
                    continue
                path.unlink()
                count, size_bytes = count + 1, size_bytes + about.st_size
    with suppress(FileNotFoundError):
        folder.rmdir()
    return Extent(count, size_bytes)


def remove_empty(top: Path, changed_before: float) -> int:
    """Remove folders below `top` that hold nothing and have not changed since then; returns how many."""
    removed = 0
    for root, _, _ in os.walk(top, topdown=False):
        folder = Path(root)
        with suppress(FileNotFoundError):
            if folder != top and folder.lstat().st_mtime < changed_before:
                removed += _remove_if_empty(folder)
    return removed
