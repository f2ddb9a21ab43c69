"""A database of its own for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.settings import Settings
from support.empty_database import place_empty_database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    settings = Settings(data_dir=tmp_path)
    await place_empty_database(settings)
    database = await open_database(settings)
    yield database
    await database.close()


@pytest.fixture
def jobs(database: Database) -> SqlJobs:
    return SqlJobs(database)


@pytest.fixture
def claims(database: Database) -> SqlClaims:
    return SqlClaims(database)
