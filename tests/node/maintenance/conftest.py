from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.data_folder import Folder, opened


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Folder]:
    async with opened(tmp_path) as folder:
        yield folder
