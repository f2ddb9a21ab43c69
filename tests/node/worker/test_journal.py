"""Notes of how attempts ended: read back after a kill, whatever the disk was like."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull
from belljar.model.job import Artifact, JobError, NetworkUse, Refusal
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.node.worker.journal import AttemptJournal, journal_path, read_journal
from support.job_queue import queued

FIRST = Outcome(status=Status.FAILED, exit_code=3, finished_at=datetime.now(UTC))
LAST = FIRST.model_copy(update={"kept_artifacts": (Artifact(path="a b\n", size_bytes=3),)})
MANY = tuple(Artifact(path=f"{number:0200}", size_bytes=1) for number in range(1000))


def test_the_last_note_counts_and_half_a_note_does_not(tmp_path: Path) -> None:
    job = queued(attempt=2)
    path = journal_path(tmp_path, job)
    journal = AttemptJournal(path, job)
    ((_, nothing),) = read_journal(tmp_path)
    assert nothing is None
    journal.note(FIRST)
    journal.note(LAST)
    journal.close()
    ((found, entry),) = read_journal(tmp_path)
    assert found == path and entry is not None
    assert (entry.job_id, entry.attempt, entry.outcome) == (job.id, 2, LAST)
    whole = path.read_bytes()
    end = whole.rindex(b"\n")
    for cut in (end, end - 1, end - 100):
        path.write_bytes(whole[:cut])
        ((_, entry),) = read_journal(tmp_path)
        assert entry is not None and entry.outcome == (LAST if cut == end else FIRST)


def test_its_space_is_there_before_the_disk_is_full(small_disk: Path) -> None:
    job = queued(attempt=1)
    journal = AttemptJournal(journal_path(small_disk, job), job)
    with pytest.raises(OSError, match="No space"), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()
    with pytest.raises(DiskFull, match="free some space"):
        AttemptJournal(journal_path(small_disk, queued()), queued())
    journal.note(FIRST)
    journal.note(FIRST.model_copy(update={"kept_artifacts": MANY, "error": JobError(code="x", message="y" * 5000)}))
    journal.close()
    ((_, entry),) = read_journal(small_disk)
    assert entry is not None
    assert (entry.outcome.exit_code, entry.outcome.kept_artifacts) == (3, ())


def test_a_note_of_an_older_version_is_read(tmp_path: Path) -> None:
    job = queued(attempt=1)
    path = journal_path(tmp_path, job)
    refused = Refusal(address="10.0.0.1", port=80, protocol="tcp", always_blocked=True)
    noted = FIRST.model_copy(update={"network": NetworkUse(refused_count=1, refused=(refused,))})
    outcome = json.dumps(noted.model_dump(mode="json")).replace('"always_blocked"', '"never"')
    text = f'{{"job": "{job.id}", "attempt": 1, "outcome": {outcome}}}'.encode()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))
    ((_, entry),) = read_journal(tmp_path)
    assert entry is not None and entry.outcome == noted


def test_strange_files_are_no_notes(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "outcomes"
    folder.mkdir(parents=True)
    (folder / "empty").touch()
    (folder / "noise").write_bytes(bytes(range(256)) * 10 + b"\n00000000 {}\n")
    (folder / "folder").mkdir()
    assert [(path.name, entry) for path, entry in read_journal(tmp_path)] == [("empty", None), ("noise", None)]
