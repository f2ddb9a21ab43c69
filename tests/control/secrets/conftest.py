"""Secrets over a database of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.secrets.keys import KeyFile
from belljar.control.secrets.service import SecretService
from belljar.control.store.opening import open_database
from belljar.control.store.projects import SqlProjects
from belljar.control.store.secrets import SqlSecrets
from belljar.settings import Settings
from support.empty_database import place_empty_database


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlSecrets]:
    settings = Settings(data_dir=tmp_path)
    await place_empty_database(settings)
    database = await open_database(settings)
    for project in ("mine", "yours"):
        await SqlProjects(database).create(project)
    yield SqlSecrets(database)
    await database.close()


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "secrets.key")


@pytest.fixture
def secrets(store: SqlSecrets, keys: KeyFile) -> SecretService:
    return SecretService(store, keys)
