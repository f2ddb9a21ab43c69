from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command import AS_ORDINARY


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that other users can reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="belljar-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def ordinary() -> list[str]:
    """Words before a command that make it an ordinary user's."""
    trial = [*AS_ORDINARY, sys.executable, "-c", "import belljar"]
    if subprocess.run(trial, capture_output=True, cwd="/").returncode != 0:
        pytest.skip("an ordinary user cannot read this clone and its .venv")
    return AS_ORDINARY
