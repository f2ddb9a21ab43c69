"""Core dumps are forbidden for good, for this process's children too."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, subprocess, sys
from belljar.system.core_dumps import are_forbidden, forbid_core_dumps
resource.setrlimit(resource.RLIMIT_CORE, tuple(map(int, sys.argv[1:3])))
before = are_forbidden()
forbid_core_dumps()
forbid_core_dumps()
child = "import resource; print(*resource.getrlimit(resource.RLIMIT_CORE))"
print(before, are_forbidden(), subprocess.check_output([sys.executable, "-c", child], text=True).strip())
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("limits", "after"),
    [(("-1", "-1"), "False True 1 1"), (("0", "4096"), "False True 1 1"), (("0", "0"), "False False 0 0")],
)
def test_core_dumps_are_forbidden_as_far_as_the_limit_allows(limits: tuple[str, str], after: str) -> None:
    command = [sys.executable, "-c", CODE, *limits]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == after
