from __future__ import annotations

import subprocess
import sys

import pytest

from support.command import AS_ORDINARY


@pytest.fixture
def ordinary() -> list[str]:
    """Words before a command that make it an ordinary user's."""
    trial = [*AS_ORDINARY, sys.executable, "-c", "import belljar"]
    if subprocess.run(trial, capture_output=True, cwd="/").returncode != 0:
        pytest.skip("an ordinary user cannot read this clone and its .venv")
    return AS_ORDINARY
