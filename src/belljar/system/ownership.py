"""Who could have written a file: what decides which programs run must be root's or this user's own, all the way down.

A file counts as safe when it, each folder above it and each link on its way belong to root or to this user, and nobody
else may write them. A folder that all may write with the sticky bit, such as /tmp, is allowed above: what is in it
belongs to its owner.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

#: Links followed for one path before it counts as a circle, as Linux does (path_resolution(7)).
_MAX_LINKS = 40
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_unsafe(path: Path) -> str | None:
    """Why others could have written what this absolute path names, in words with what to do; None when they could not.

    Raises OSError for what cannot be looked at.
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
            return f"{path} is a link in a circle"
        target = place.readlink()
        done = Path("/") if target.is_absolute() else done
        todo += [part for part in target.parts[::-1] if part != "/"]
    return reason


def why_file_unsafe(place: Path, status: os.stat_result) -> str | None:
    """The same for one file that is open, whose way was looked at already."""
    return _why(place, status, last=True)


def _why(place: Path, status: os.stat_result, *, last: bool) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"{place} belongs to the user id {status.st_uid}; only root and you may own it (chown {os.geteuid()})"
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & _OTHERS_WRITE:
        return None
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and not last:
        return None
    return f"others may write {place}; take that away with: chmod go-w {place}"
