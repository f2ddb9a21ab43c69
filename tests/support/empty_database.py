"""A database without rows, migrated once in a process: opening a copy takes a sixth of the time of making it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from belljar.control.store.opening import database_path, open_database
from belljar.settings import Settings

_content = b""


async def place_empty_database(settings: Settings) -> None:
    """Put an empty database where the settings have none yet."""
    global _content
    if not _content:
        with tempfile.TemporaryDirectory() as folder:
            template = Settings(data_dir=Path(folder))
            await (await open_database(template)).close()
            _content = database_path(template).read_bytes()
    path = database_path(settings)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_content)
