"""Remove many files and folders of a local file system. All of it blocks: call it in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class Extent:
    """A number of files or other entries, and their total size."""

    count: int = 0
    size_bytes: int = 0

    def __add__(self, other: Extent) -> Extent:
        return Extent(self.count + other.count, self.size_bytes + other.size_bytes)


NOTHING = Extent()


def remove_folders(folders: Iterable[Path], top: Path | None = None) -> Extent:
    """Remove folders with their content, following no links; return the extent of the files. Raises OSError.

    Folders above them, up to but without `top`, are removed too if they are empty then. Several folders at once, in
    threads of its own: a disk serves parallel requests faster.
    """
    with ThreadPoolExecutor(_MAX_THREADS, "belljar-removes") as threads:
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
    except OSError:  # not empty, or missing
        return False
    return True


def _remove_folder(folder: Path) -> Extent:
    count = size_bytes = 0
    for root, names, files in os.walk(folder, topdown=False):
        for name in (*files, *names):
            path = Path(root, name)
            with suppress(FileNotFoundError):  # another process removes it too
                status = path.lstat()
                if stat.S_ISDIR(status.st_mode):
                    path.rmdir()
                    continue
                path.unlink()
                count, size_bytes = count + 1, size_bytes + status.st_size
    with suppress(FileNotFoundError):
        folder.rmdir()
    return Extent(count, size_bytes)


def remove_empty(top: Path, changed_before: float) -> int:
    """Remove empty folders below `top` that were last changed before a Unix time; return their number."""
    removed = 0
    for root, _, _ in os.walk(top, topdown=False):
        folder = Path(root)
        with suppress(FileNotFoundError):
            if folder != top and folder.lstat().st_mtime < changed_before:
                removed += _remove_if_empty(folder)
    return removed
