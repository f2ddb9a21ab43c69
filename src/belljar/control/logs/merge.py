"""Merges two copies of a job's log: processes that served different attempts have each written a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belljar.control.logs.log import HEADER


@dataclass(slots=True)
class _Attempt:
    """The records of one attempt in one copy."""

    size_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


def merge_logs(local: Path, uploaded: Path, target: Path) -> bool:
    """Write the records of both copies to `target`, ordered by attempt; return False if `uploaded` holds all of them.

    Of an attempt whose records in one copy are the beginning of those in the other, the longer is taken; if they
    differ, both are. Half a record at the end is left out. Raises OSError.
    """
    ours, theirs = _attempts(local), _attempts(uploaded)
    sources: dict[int, list[Path]] = {}
    for attempt in sorted({*ours, *theirs}):
        copies = [(local, ours.get(attempt, _Attempt())), (uploaded, theirs.get(attempt, _Attempt()))]
        (shorter, beginning), (longer, _) = sorted(copies, key=lambda copy: copy[1].size_bytes)
        is_prefix = _digest(longer, attempt, beginning.size_bytes) == beginning.digest.digest()
        sources[attempt] = [longer] if is_prefix else [shorter, longer]
    if all(paths == [uploaded] for paths in sources.values()):
        return False
    with target.open("wb") as out:
        for attempt, paths in sources.items():
            for path in paths:
                for number, record in _records(path):
                    if number == attempt:
                        out.write(record)
    return True


def _attempts(path: Path) -> dict[int, _Attempt]:
    attempts: dict[int, _Attempt] = {}
    for number, record in _records(path):
        attempt = attempts.setdefault(number, _Attempt())
        attempt.size_bytes += len(record)
        attempt.digest.update(record)
    return attempts


def _digest(path: Path, attempt: int, size_bytes: int) -> bytes:
    """Return the digest of the first bytes of an attempt's records."""
    digest = hashlib.sha256()
    for number, record in _records(path):
        if number == attempt and size_bytes > 0:
            digest.update(record[:size_bytes])
            size_bytes -= len(record)
    return digest.digest()


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the attempt and the bytes of each whole record, header included."""
    with path.open("rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            length, _, attempt = HEADER.unpack(header)
            data = file.read(length)
            if len(data) < length:
                return
            yield attempt, header + data
