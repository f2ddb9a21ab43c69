"""Copies of a log that several processes have written parts of."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.control.logs.log import HEADER
from belljar.control.logs.merge import merge_logs
from belljar.model.log_stream import LogStream

RECORDS = st.lists(st.tuples(st.integers(1, 3), st.binary(max_size=3)), max_size=8)
#: How many records of each attempt a copy has.
COUNTS = st.lists(st.integers(0, 8), min_size=3, max_size=3)
Log = list[tuple[int, bytes]]


def write(path: Path, records: Log, rest: bytes = b"") -> Path:
    lines = [HEADER.pack(len(data), LogStream.STDOUT, attempt) + data for attempt, data in records]
    path.write_bytes(b"".join(lines) + rest)
    return path


def merged(folder: Path, local: Log, uploaded: Log, rest: bytes = b"") -> Path | None:
    target = folder / "merged"
    paths = write(folder / "local", local, rest), write(folder / "uploaded", uploaded)
    return target if merge_logs(*paths, target) else None


@settings(max_examples=200, deadline=None)
@given(
    RECORDS, st.lists(st.integers(0, 8), min_size=3, max_size=3), st.lists(st.integers(0, 8), min_size=3, max_size=3)
)
def test_copies_that_are_cut_off_anywhere_become_one(
    tmp_path_factory: pytest.TempPathFactory, records: Log, local_counts: list[int], uploaded_counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    by_attempt = {attempt: [each for each in records if each[0] == attempt] for attempt in (1, 2, 3)}

    def cut(counts: list[int]) -> Log:
        return [each for attempt, count in zip((1, 2, 3), counts, strict=True) for each in by_attempt[attempt][:count]]

    local, uploaded = cut(local_counts), cut(uploaded_counts)
    expected = cut([max(counts) for counts in zip(local_counts, uploaded_counts, strict=True)])
    path = merged(folder, local, uploaded, rest=b"\5\0\0\0half")
    assert (path is None) == (expected == uploaded)
    assert path is None or path.read_bytes() == write(folder / "expected", expected).read_bytes()


def test_records_that_differ_are_all_kept(tmp_path: Path) -> None:
    path = merged(tmp_path, [(1, b"a"), (2, b"x")], [(1, b"bb")])
    assert path is not None
    assert path.read_bytes() == write(tmp_path / "expected", [(1, b"a"), (1, b"bb"), (2, b"x")]).read_bytes()
