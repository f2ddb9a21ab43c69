"""Images' root file systems, unpacked once."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.languages.unpacked import Unpacked


@pytest.fixture(scope="session")
def unpacked(language_images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Unpacked]:
    folder = tmp_path_factory.mktemp("unpacked")
    return {
        name: Unpacked.of(language_images, name, folder) for name in ("python", "scripting", "native", "go", "java")
    }
