"""How much of each deadline machines on this host used at most: what came close is told before it is exceeded.

The maxima of the last days are a small file in the data folder, which `belljar doctor` reads. It is written only when a
maximum grows noticeably, so a busy node writes it a few times a day.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from belljar.data_dir import private_folder
from belljar.model.errors import BelljarError, MachineTimeout
from belljar.system.atomic_write import atomic_write

log = structlog.get_logger()

#: A maximum counts for this long.
KEEP_SECONDS = 7 * 86_400.0
#: A maximum is written when it is larger by this share of its deadline.
_NOTICEABLE = 0.05
_MAX_FILE_BYTES = 64 * 1024
_MAX_NAMES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadlineUse:
    """The longest time that one kind of wait took."""

    name: str
    used_seconds: float
    limit_seconds: float
    #: When that was, in seconds since 1970.
    at: float

    @property
    def share(self) -> float:
        """Return the used part of the deadline; 1 when it was exceeded."""
        return self.used_seconds / self.limit_seconds if self.limit_seconds > 0 else 1.0

    def is_replaced_by(self, other: DeadlineUse) -> bool:
        """Return whether the other is larger, or newer where this one no longer counts."""
        outdated = other.at - self.at > KEEP_SECONDS or self.limit_seconds != other.limit_seconds
        return other.share >= self.share or (outdated and other.at > self.at)


class DeadlineUses:
    """The maxima of this process, and of earlier ones in its file once it has one."""

    def __init__(self) -> None:
        self._uses: dict[str, DeadlineUse] = {}
        self._written: dict[str, DeadlineUse] = {}
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Write the maxima to this file from now on."""
        if file != self._file:
            self._file, self._written = file, {use.name: use for use in read_deadline_uses(file)}

    def record(self, name: str, used_seconds: float, limit_seconds: float) -> None:
        """Note a wait that ended after `used_seconds`."""
        use = DeadlineUse(
            name=name, used_seconds=round(used_seconds, 3), limit_seconds=limit_seconds, at=round(time.time(), 3)
        )
        known = self._uses.get(name)
        if known is not None and not known.is_replaced_by(use):
            return
        self._uses[name] = use
        written = self._written.get(name)
        if written is None or (written.is_replaced_by(use) and abs(use.share - written.share) >= _NOTICEABLE):
            self._write()

    def all(self) -> list[DeadlineUse]:
        """Return the maxima of this process."""
        return list(self._uses.values())

    def _write(self) -> None:
        if self._file is None:
            return
        merged = {use.name: use for use in read_deadline_uses(self._file)}
        for name, use in self._uses.items():
            if name not in merged or merged[name].is_replaced_by(use):
                merged[name] = use
        self._written = merged
        try:
            private_folder(self._file.parent)
            atomic_write(self._file, json.dumps([asdict(use) for use in merged.values()]), mode=0o600)
        except (OSError, BelljarError) as error:
            log.warning("deadline_uses_not_written", error=str(error))


#: Those of this process.
deadline_uses = DeadlineUses()


def read_deadline_uses(file: Path) -> list[DeadlineUse]:
    """Return the maxima in a file that still count, the closest to its deadline first; none of a damaged file."""
    try:
        with file.open() as opened:
            entries = json.loads(opened.read(_MAX_FILE_BYTES))
        uses = [
            DeadlineUse(
                name=str(entry["name"])[:40],
                used_seconds=float(entry["used_seconds"]),
                limit_seconds=float(entry["limit_seconds"]),
                at=float(entry["at"]),
            )
            for entry in entries[:_MAX_NAMES]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sorted((use for use in uses if time.time() - use.at < KEEP_SECONDS), key=lambda use: -use.share)


@contextlib.contextmanager
def noted(name: str, limit_seconds: float, *, by_guest: bool = False) -> Iterator[None]:
    """Note how long the block takes, which has a deadline of its own: at its success, and at a timeout.

    `by_guest`: a script can make it time out, so that only a success says something about this host.
    """
    started = time.monotonic()
    try:
        yield
    except (TimeoutError, MachineTimeout):
        if not by_guest:
            deadline_uses.record(name, limit_seconds, limit_seconds)
        raise
    deadline_uses.record(name, time.monotonic() - started, limit_seconds)
