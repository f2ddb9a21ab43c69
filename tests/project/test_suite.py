"""What the suite says of its own tests is current."""

from __future__ import annotations

import re

from support.order import LONG_FILES
from support.paths import TESTS


def test_files_that_begin_first_exist() -> None:
    assert [name for name in LONG_FILES if not (TESTS / name).is_file()] == []
    assert len(set(LONG_FILES)) == len(LONG_FILES)


def test_fixtures_that_mark_tests_exist() -> None:
    conftests = [path.read_text() for path in TESTS.rglob("conftest.py")]
    names = re.search(r"^_PROCESS_FIXTURES = \{(.*)\}$", (TESTS / "conftest.py").read_text(), re.M)
    assert names
    for name in re.findall(r"\w+", names[1]):
        assert any(f"def {name}(" in text for text in conftests), name
