"""A root filesystem while it is unpacked: every path in it is resolved by hand and never leaves it.

Links are followed as the image's own programs would follow them, with `/` standing for the tree's root; `..` does not
go above it. The kernel follows no link for us: each step is an lstat, so a layer cannot point its successors outside.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from belljar.model.errors import InvalidImage

_MAX_LINKS = 40
_MAX_PATH_BYTES = 4000
_MAX_NAME_BYTES = 255


def path_parts(path: str, what: str = "a layer") -> list[str]:
    """The names in a path below the root. Raises InvalidImage for an absolute path, for `..`, and for endless names."""
    if path.startswith("/"):
        raise InvalidImage(f"{what} has the absolute path {path[:80]!r}; paths in a layer are relative")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidImage(f"{what} has a path that leaves the image: {path[:80]!r}")
    if len(os.fsencode(path)) > _MAX_PATH_BYTES or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts):
        raise InvalidImage(f"{what} has a path that is too long: {path[:80]!r}…")
    return parts


class RootTree:
    """A folder that becomes an image's root."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._folders: dict[str, str] = {}

    def forget(self) -> None:
        """A link or folder changed: what paths lead to is found out anew."""
        self._folders.clear()

    def folder(self, parts: list[str]) -> str:
        """The real path of a folder, made with what leads to it if need be. Raises InvalidImage."""
        key = "/".join(parts)
        known = self._folders.get(key)
        if known is None:
            known = self._folders[key] = self._walk(parts, make=True)
        return known

    def find(self, path: str) -> str | None:
        """The real path of what the image's programs would find there, links followed; None when that is nothing."""
        parts = [part for part in path.split("/") if part]
        try:
            return self._walk(parts, make=False)
        except (InvalidImage, FileNotFoundError):
            return None

    def read(self, path: str, most: int = 16 * 1024 * 1024) -> str:
        """The text of a regular file, cut at `most` bytes; empty when it is not there."""
        real = self.find(path)
        if real is None or not stat.S_ISREG(os.lstat(real).st_mode):
            return ""
        with open(real, "rb") as file:  # noqa: PTH123 (a path of its own kind: no Path of the host)
            return file.read(most).decode(errors="replace")

    def _walk(self, parts: list[str], *, make: bool) -> str:
        here, left, links = self.root, list(reversed(parts)), 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                here = here if here == self.root else os.path.dirname(here)  # noqa: PTH120
                continue
            there = f"{here}/{part}"
            try:
                mode = os.lstat(there).st_mode
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(there, 0o755)  # noqa: PTH102
                mode = stat.S_IFDIR
            if stat.S_ISLNK(mode):
                links += 1
                if links > _MAX_LINKS:
                    raise InvalidImage(f"links go round in circles at {'/'.join(parts)[:80]!r}")
                target = os.readlink(there)  # noqa: PTH115
                here = self.root if target.startswith("/") else here
                left += reversed(target.split("/"))
                continue
            if (left and not stat.S_ISDIR(mode)) or (make and not stat.S_ISDIR(mode)):
                raise InvalidImage(f"a layer puts files below {'/'.join(parts)[:80]!r}, which is no folder")
            here = there
        return here
