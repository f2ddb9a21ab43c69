"""File systems of the tests' own: full, small or read-only ones."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount something on a folder until the block ends, by the words of mount(8); skip where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir(exist_ok=True)
    run = subprocess.run(["mount", *options, folder], capture_output=True)
    if run.returncode != 0:
        pytest.skip(f"mount is not allowed here: {run.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def small_tmpfs(folder: Path, limits: str) -> contextlib.AbstractContextManager[Path]:
    """Mount a tmpfs with limits, such as `size=1m`, until the block ends."""
    return mounted(folder, "-t", "tmpfs", "-o", limits, "belljar-test")
