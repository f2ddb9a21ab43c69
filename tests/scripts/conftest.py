"""A disk that is soon full, and languages as images name them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.manifest import Language


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "belljar-test", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


PYTHON = Language(
    name="python",
    extensions=(".py",),
    interpreters=("python3", "python"),
    entrypoints=("main.py", "__main__.py"),
    run=("python3", "{entrypoint}"),
)
SHELL = Language(
    name="shell",
    extensions=(".sh",),
    interpreters=("sh", "bash"),
    entrypoints=("main.sh", "run.sh"),
    run=("sh", "{entrypoint}"),
)
BINARY = Language(name="binary", extensions=(".bin",), run=("{entrypoint}",))


@pytest.fixture(scope="session")
def languages() -> list[Language]:
    return [PYTHON, SHELL, BINARY]
