from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.registered_images import register
from support.served import Served, served


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    """An application with the image python, an upload limit of 1 MB, and no worker."""
    if shutil.which("mkfs.erofs") is None:
        pytest.skip("needs erofs-utils")
    register(tmp_path, "python")
    async with served(tmp_path, max_upload_mb=1) as api:
        yield api
