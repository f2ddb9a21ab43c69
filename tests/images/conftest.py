from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.built_images import BuiltImages, link_or_copy


@pytest.fixture(scope="session")
def own_images(images_of_the_run: BuiltImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with the images python and shell and their build cache, for this session only."""
    folder = tmp_path_factory.mktemp("own")
    images_of_the_run.copy_with_build_cache(folder)
    return folder


@pytest.fixture
def image_dir(own_images: Path, tmp_path: Path) -> Path:
    """Return a data folder of this test with the built images and the cached parts."""
    folder = tmp_path / "data"
    shutil.copytree(own_images / "images", folder / "images", copy_function=link_or_copy)
    shutil.copytree(own_images / "cache" / "notes", folder / "cache" / "notes")
    (folder / "belljar.toml").write_text('accelerator = "tcg"\nlog_format = "text"\n')
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return an empty root folder, in a folder that no layer may write to."""
    folder = tmp_path / "jar" / "tree"
    folder.mkdir(parents=True)
    return folder
