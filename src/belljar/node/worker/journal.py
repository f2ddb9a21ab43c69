"""The ends of attempts that the control plane may not know yet, in files of this host: they outlive a killed worker.

An attempt's file is made, with its space, before the attempt begins, so that the end fits on a full disk too.
Each line is a checksum and a JSON object; the last whole line counts. It is not synchronised to the disk: it outlives
the worker's process, not the host's power. The file of an ended script whose lease was lost stays: if this node gets
the job again, it reports that end and does not run the script a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from belljar.data_dir import DataDir
from belljar.model.errors import host_error
from belljar.model.job import Job, JobError
from belljar.model.outcome import Outcome

log = structlog.get_logger()

_SPACE_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """How one attempt ended."""

    job_id: str
    attempt: int
    outcome: Outcome


class AttemptJournal:
    """One attempt's file. `close` it when nothing more is to be noted, `remove` it when the end was reported."""

    def __init__(self, path: Path, job: Job) -> None:
        """Make the file. Raises DiskFull, HostError."""
        self._path = path
        self._job = job
        self._end = 0
        self._file = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.posix_fallocate(self._file, 0, _SPACE_BYTES)
        except OSError as error:
            self.remove()
            raise host_error(error, "keep a place for the job's end") from error

    def note(self, outcome: Outcome) -> None:
        """Note the end as it is known now; the last note counts. Never raises: the end is reported all the same."""
        if self._file < 0:
            return
        if not self._append(outcome):
            self._append(_reduced(outcome))

    def _append(self, outcome: Outcome) -> bool:
        value = {"job": self._job.id, "attempt": self._job.attempt, "outcome": outcome.model_dump(mode="json")}
        text = json.dumps(value).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        try:
            at, data = self._end, line
            while data:
                written = os.pwrite(self._file, data, at)
                at, data = at + written, data[written:]
        except OSError as error:
            log.error("outcome_not_noted", job=self._job.id, error=str(error))
            return False
        self._end += len(line)
        return True

    def close(self) -> None:
        """Close the file, which stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Remove the file."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _reduced(outcome: Outcome) -> Outcome:
    """Return the outcome without the list of artifacts, which may be too long."""
    error = outcome.error or JobError(code="artifacts_incomplete", message="the list of artifacts was lost")
    message = error.message[:500]
    return outcome.model_copy(
        update={
            "kept_artifacts": (),
            "network": type(outcome.network)(),
            "error": JobError(code=error.code, message=message),
        }
    )


def journal_path(data_dir: Path, job: Job) -> Path:
    """Return the path of the attempt's file."""
    return DataDir(data_dir).outcomes / f"{job.id}.{job.attempt}"


def read_journal(data_dir: Path) -> Iterator[tuple[Path, Entry | None]]:
    """Yield every file that a killed worker left, with its last entry; None when the attempt had not ended."""
    for path in sorted(DataDir(data_dir).outcomes.glob("*")):
        try:
            entry = _last_entry(path)
        except OSError as error:
            log.error("outcome_not_read", path=str(path), error=str(error))
            continue
        yield path, entry


def earlier_end(data_dir: Path, job: Job) -> tuple[Path, Entry] | None:
    """Return how the job's script ended in an earlier attempt on this node, and the file that says so.

    The control plane has not learned it: the lease ran out before. Raises OSError.
    """
    for attempt in range(job.attempt - 1, 0, -1):
        path = journal_path(data_dir, job.model_copy(update={"attempt": attempt}))
        try:
            entry = _last_entry(path)
        except FileNotFoundError:
            continue
        if entry is not None and entry.job_id == job.id and entry.outcome.started_at is not None:
            return path, entry
    return None


def _last_entry(path: Path) -> Entry | None:
    entries = [entry for line in path.read_bytes().split(b"\n") if (entry := _parse(line)) is not None]
    return entries[-1] if entries else None


def _parse(line: bytes) -> Entry | None:
    checksum, _, text = line.partition(b" ")
    try:
        if int(checksum, 16) != zlib.crc32(text):
            return None
        value = json.loads(text)
        _rename_old_fields(value["outcome"])
        return Entry(value["job"], value["attempt"], Outcome.model_validate(value["outcome"]))
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None


def _rename_old_fields(outcome: dict[str, Any]) -> None:
    """Give the fields of an older version's outcome their names of now: else its script would run a second time."""
    for refusal in outcome.get("network", {}).get("refused", ()):
        if "never" in refusal:
            refusal["always_blocked"] = refusal.pop("never")
