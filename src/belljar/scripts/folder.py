"""A folder of the user's as a script: copied with the same checks as an archive."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from belljar.errors import InvalidScript
from belljar.scripts.tree import CHUNK_BYTES, Tree

#: Made by tools, large, and of no use to a job.
SKIPPED = frozenset({".git", "__pycache__"})


def copy_folder(source: Path, tree: Tree) -> None:
    """Put a folder's content into the tree, less `SKIPPED`. Blocks: for a thread. Raises InvalidScript, TooLarge."""
    todo = [""]
    while todo:
        above = todo.pop()
        with os.scandir(source / above) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name in SKIPPED:
                continue
            name = f"{above}/{entry.name}" if above else entry.name
            if entry.is_dir(follow_symlinks=False):
                tree.add_folder(name)
                todo.append(name)
            else:
                _add(tree, name, entry)


def _add(tree: Tree, name: str, entry: os.DirEntry[str]) -> None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        tree.add_link(name, os.readlink(entry.path))  # noqa: PTH115 - the target as it is written
    elif stat.S_ISREG(mode):
        tree.add_file(name, _read(entry.path), executable=bool(mode & 0o111))
    else:
        raise InvalidScript(f"{name[:80]!r} is a device, pipe or socket; a script holds files, folders and links only")


def _read(path: str) -> Iterator[bytes]:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as content:  # noqa: PTH123 - of a descriptor
        while chunk := content.read(CHUNK_BYTES):
            yield chunk
