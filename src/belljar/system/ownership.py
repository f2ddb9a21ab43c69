"""Whether another user could have written a file: for files that decide which programs run.

A file is safe if root or this user owns it, each folder above it and each link on its way, and nobody else may write
them. Folders above may be writable by all if they have the sticky bit, such as /tmp: there, only the owner of an entry
may replace it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: Links followed for one path before it counts as a loop, as in Linux (path_resolution(7)).
_MAX_LINKS = 40
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_unsafe(path: Path) -> str | None:
    """Return why another user could have written the file at this absolute path, and what to do; None when it is safe.

    Raises OSError for a part of the path that cannot be read.
    """
    todo = [part for part in path.parts[::-1] if part != "/"]
    done = Path("/")
    links = 0
    reason = _why(done, os.lstat(done), last=not todo)
    while todo and reason is None:
        part = todo.pop()
        if part == "..":
            done = done.parent
            continue
        place = done / part
        status = os.lstat(place)
        reason = _why(place, status, last=not todo)
        if not stat.S_ISLNK(status.st_mode):
            done = place
            continue
        links += 1
        if links > _MAX_LINKS:
            return f"{path} is a link in a loop"
        target = place.readlink()
        done = Path("/") if target.is_absolute() else done
        todo += [part for part in target.parts[::-1] if part != "/"]
    return reason


def why_file_unsafe(place: Path, status: os.stat_result) -> str | None:
    """Return the same for one open file, whose path was checked already."""
    return _why(place, status, last=True)


def _why(place: Path, status: os.stat_result, *, last: bool) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to the user id {status.st_uid}; only root and you may own it (chown {os.geteuid()})"
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS_WRITE:
        return None
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and not last:
        return None
    return f"others may write {place}; take that away with: chmod go-w {place}"
