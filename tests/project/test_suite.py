"""The suite's own tables are current."""

from __future__ import annotations

from support.order import LONG_FILES
from support.paths import TESTS


def test_files_that_begin_first_exist() -> None:
    assert [name for name in LONG_FILES if not (TESTS / name).is_file()] == []
    assert len(set(LONG_FILES)) == len(LONG_FILES)
