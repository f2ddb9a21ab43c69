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


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await open_database(Settings(data_dir=tmp_path))
    yield database
    await database.close()


@pytest.fixture
def jobs(database: Database) -> SqlJobs:
    return SqlJobs(database)


@pytest.fixture
def claims(database: Database) -> SqlClaims:
    return SqlClaims(database)
