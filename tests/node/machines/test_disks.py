"""Copying and moving files that are mostly holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from belljar.model.errors import HostError
from belljar.node.machines.disks import copy_sparse_file, move_sparse, overwrite

MB = 1 << 20


def holey(path: Path, size: int = 64 * MB) -> bytes:
    """A file with data in two places; returns what is at them."""
    with path.open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"first", 0)
        os.pwrite(file.fileno(), b"second", 40 * MB)
    return b"first" + b"second"


def test_a_copy_is_equal_and_as_small(tmp_path: Path) -> None:
    holey(tmp_path / "source")
    copy_sparse_file(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < MB
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600


def test_a_copy_never_goes_over_what_is_there(tmp_path: Path) -> None:
    holey(tmp_path / "source")
    (tmp_path / "copy").write_text("there already")
    with pytest.raises(HostError):
        copy_sparse_file(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "there already"


def test_a_move_turns_zeros_into_holes(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(8 * MB) + b"end")
    move_sparse(tmp_path / "source", tmp_path / "moved")
    assert not (tmp_path / "source").exists()
    assert (tmp_path / "moved").stat().st_size == 8 * MB + 3
    assert (tmp_path / "moved").read_bytes()[-3:] == b"end"
    assert (tmp_path / "moved").stat().st_blocks * 512 < MB


def test_a_disk_is_written_over_and_what_was_longer_before_is_gone(tmp_path: Path) -> None:
    disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(disk, 8 * MB)
        (tmp_path / "long").write_bytes(b"L" * (3 * MB))
        (tmp_path / "short").write_bytes(b"S" * 10)
        before = overwrite(disk, tmp_path / "long", max_bytes=8 * MB, previous_bytes=0)
        assert before == 3 * MB
        assert overwrite(disk, tmp_path / "short", max_bytes=8 * MB, previous_bytes=before) == 10
        assert os.pread(disk, 8 * MB, 0) == b"S" * 10 + bytes(8 * MB - 10)
        with pytest.raises(HostError, match="make the script smaller"):
            overwrite(disk, tmp_path / "long", max_bytes=MB, previous_bytes=0)
    finally:
        os.close(disk)


def test_a_source_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="absent"):
        copy_sparse_file(tmp_path / "absent" / "file", tmp_path / "copy")
