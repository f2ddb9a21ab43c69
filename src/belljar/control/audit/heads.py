"""The newest hashes of the audit log, noted at intervals in a file outside the database.

They show that rows were cut off at the end, or that the whole chain was written anew; the chain alone does not. Whoever
can write this file too can hide that, so the server's log gets every head as well.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from belljar.control.audit.entry import Point
from belljar.data_dir import private_file
from belljar.model.errors import InvalidOption
from belljar.system.atomic_write import atomic_path

_MAX_LINE = 200


class Heads:
    """The file of heads: a line SEQ:HASH for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._newest: Point | None = None

    def add(self, head: Point) -> bool:
        """Append a head, and return whether it is new. Raises OSError."""
        if self._newest is None:
            self._newest = next(iter(deque(self.read(), maxlen=1)), None)
        if head == self._newest:
            return False
        private_file(self.path)
        with self.path.open("ab") as file:
            file.write(f"{head}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._newest = head
        return True

    def read(self) -> Iterator[Point]:
        """Yield the heads in the order of the file. Skips lines that a crash left incomplete. Raises OSError."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            while line := file.readline(_MAX_LINE):
                point = _parsed(line.decode("ascii", "replace").strip())
                if point is not None:
                    yield point

    def remove_through(self, seq: int) -> None:
        """Remove heads of rows up to this number: retention removed the rows. Raises OSError."""
        if not self.path.exists():
            return
        with atomic_path(self.path, durable=True) as part:
            private_file(part)
            with part.open("wb") as file:
                file.writelines(f"{head}\n".encode() for head in self.read() if head.seq > seq)


def parse_head(text: str) -> Point:
    """Return the head SEQ:HASH. Raises InvalidOption."""
    point = _parsed(text)
    if point is None:
        raise InvalidOption(f"{text[:80]!r} is no head of the audit log; it has the form NUMBER:HASH", option="head")
    return point


def _parsed(text: str) -> Point | None:
    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit() and len(number) < 20 and len(digest) == 64):
        return None
    try:
        return Point(seq=int(number), hash=bytes.fromhex(digest))
    except ValueError:
        return None
