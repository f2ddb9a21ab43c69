"""Resolve paths in a root filesystem while it is unpacked; no path ever leaves it.

Links are followed as in the image, where `/` is the tree's root and `..` does not go above it. Each step is an lstat,
and the kernel follows no link, so a layer's link cannot lead later layers outside.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from belljar.model.errors import InvalidImage

_MAX_LINKS = 40
_MAX_PATH_BYTES = 4000
_MAX_NAME_BYTES = 255


def path_parts(path: str, subject: str = "a layer") -> list[str]:
    """Return the names in a relative path. Raises InvalidImage for absolute paths, `..` and long names.

    `subject` is what has the path, for the message.
    """
    if path.startswith("/"):
        raise InvalidImage(f"{subject} has the absolute path {path[:80]!r}; paths in a layer must be relative")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidImage(f"{subject} has a path that leaves the image: {path[:80]!r}")
    if len(os.fsencode(path)) > _MAX_PATH_BYTES or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts):
        raise InvalidImage(f"{subject} has a path that is too long: {path[:80]!r}…")
    return parts


class RootTree:
    """The folder that becomes an image's root."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._folders: dict[str, str] = {}

    def forget(self) -> None:
        """Discard cached folders, after a link or a folder changed."""
        self._folders.clear()

    def folder(self, parts: list[str]) -> str:
        """Return the real path of a folder, created with its parents when missing. Raises InvalidImage, OSError."""
        key = "/".join(parts)
        cached = self._folders.get(key)
        if cached is None:
            cached = self._folders[key] = self._resolve(parts, create=True)
        return cached

    def find(self, path: str) -> str | None:
        """Return the real path of a file or folder, links followed as in the image; None when it does not exist."""
        parts = [part for part in path.split("/") if part]
        try:
            return self._resolve(parts, create=False)
        except (InvalidImage, FileNotFoundError):
            return None

    def read(self, path: str, max_bytes: int = 16 * 1024 * 1024) -> str:
        """Return the text of a regular file, at most `max_bytes` of it; empty when it does not exist."""
        real = self.find(path)
        if real is None or not stat.S_ISREG(os.lstat(real).st_mode):
            return ""
        with open(real, "rb") as file:  # noqa: PTH123 (paths in the tree are str, those of the host Path)
            return file.read(max_bytes).decode(errors="replace")

    def _resolve(self, parts: list[str], *, create: bool) -> str:
        here, pending, links = self.root, list(reversed(parts)), 0
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = here if here == self.root else os.path.dirname(here)  # noqa: PTH120
                continue
            there = f"{here}/{part}"
            try:
                mode = os.lstat(there).st_mode
            except FileNotFoundError:
                if not create:
                    raise
                os.mkdir(there, 0o755)  # noqa: PTH102
                mode = stat.S_IFDIR
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise InvalidImage(f"{'/'.join(parts)[:80]!r} has a loop of links")
                target = os.readlink(there)  # noqa: PTH115
                here = self.root if target.startswith("/") else here
                pending += reversed(target.split("/"))
                continue
            if (pending or create) and not stat.S_ISDIR(mode):
                raise InvalidImage(f"a layer has files below {'/'.join(parts)[:80]!r}, which is not a folder")
            here = there
        return here
