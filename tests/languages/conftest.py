"""Root file systems of images, unpacked once in a run."""

from __future__ import annotations

import pytest

from support.built_images import BuiltImages
from support.languages.unpacked import UnpackedImages


@pytest.fixture(scope="session")
def unpacked(images_of_the_run: BuiltImages) -> UnpackedImages:
    return UnpackedImages(images_of_the_run)
