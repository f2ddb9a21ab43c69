"""Finds files and folders by age, and measures them. Removes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from belljar.system.removal import Extent

DAY_SECONDS = 86_400.0


def older_than(paths: Iterable[Path], seconds: float) -> list[Path]:
    """Return the paths that were last changed more than `seconds` ago, without those that do not exist any more."""
    oldest = time.time() - seconds
    return [path for path in paths if modified_at(path) < oldest]


def unused(paths: Iterable[Path], days: float) -> list[Path]:
    """Return the paths that were last changed more than `days` ago; none for 0 days, which mean keep for ever."""
    return older_than(paths, days * DAY_SECONDS) if days else []


def modified_at(path: Path) -> float:
    """Return the time of the last change in seconds since 1970; infinity when the file does not exist."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")


def extent_of_files(paths: Iterable[Path]) -> Extent:
    """Return the number of existing files among `paths` and their sizes in bytes."""
    extent = Extent()
    for path in paths:
        with suppress(OSError):
            extent += Extent(1, path.lstat().st_size)
    return extent


def extent_of_folder(folder: Path) -> Extent:
    """Return the number of files below a folder and the disk space that they use: most are sparse."""
    extent = Extent()
    for root, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                extent += Extent(1, Path(root, name).lstat().st_blocks * 512)
    return extent
