from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def image_dir(built_images: Path, tmp_path: Path) -> Path:
    """A data folder of its own, where the kernel and the built images are at hand: what is made there stays there."""
    folder = tmp_path / "data"
    shutil.copytree(built_images / "images", folder / "images", copy_function=os.link)
    shutil.copytree(built_images / "cache" / "notes", folder / "cache" / "notes")
    (folder / "belljar.toml").write_text('accelerator = "tcg"\nlog_format = "text"\n')
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty root, with a place beside it that nothing may reach."""
    folder = tmp_path / "jar" / "tree"
    folder.mkdir(parents=True)
    return folder
