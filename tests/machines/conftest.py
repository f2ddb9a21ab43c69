"""What tests of machines stand on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that other users may enter; pytest closes its own to them whenever a run begins."""
    place = Path(tempfile.mkdtemp(prefix="belljar-test-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)
