"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.system.atomic_write import atomic_path, atomic_write


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, "old")
    atomic_write(path, b"new", mode=0o600)
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="broken"), atomic_path(path, durable=durable) as part:
        part.write_text("half")
        raise OSError("broken")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with atomic_path(path, durable=durable) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_path(path) as one, atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
