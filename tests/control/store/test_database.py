"""Opening the database, and the errors for one that is newer, damaged, read-only or full."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.opening import open_database
from belljar.model.errors import BelljarError, DataFolderError, DiskFull, HostError
from belljar.settings import Settings
from support.job_queue import queued


async def opened(folder: Path) -> Database:
    return await open_database(Settings(data_dir=folder))


async def refused(folder: Path, kind: type[BelljarError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        await opened(folder)
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


async def test_what_was_kept_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    database = await opened(tmp_path / "deep/data")
    job = await SqlJobs(database).insert(queued(labels={"a": "b"}, env={"A": "é"}))
    await database.close()
    database = await opened(tmp_path / "deep/data")
    assert await SqlJobs(database).get("mine", job.id) == job
    await database.close()
    assert (tmp_path / "deep/data").stat().st_mode & 0o077 == 0


async def test_several_that_open_a_new_folder_at_once_agree(tmp_path: Path) -> None:
    databases = await asyncio.gather(*(opened(tmp_path / "data") for _ in range(4)))
    for database in databases:
        await SqlJobs(database).insert(queued())
    assert sum((await SqlJobs(databases[0]).counts()).values()) == 4
    for database in databases:
        await database.close()


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    await (await opened(tmp_path)).close()
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await refused(tmp_path, DataFolderError, "newer version .*9999.* upgrade")
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "belljar.db").write_bytes(b"these are my notes\n" * 100)
    await refused(tmp_path, DataFolderError, "damaged or not a SQLite database.*backup")
    assert (tmp_path / "belljar.db").read_bytes() == b"these are my notes\n" * 100


async def test_a_damaged_database_is_reported_as_damaged(tmp_path: Path) -> None:
    database = await opened(tmp_path)
    for _ in range(20):
        await SqlJobs(database).insert(queued())
    await database.close()
    path = tmp_path / "belljar.db"
    data = bytearray(path.read_bytes())
    page = 4096
    data[page:] = b"\xa5" * (len(data) - page)  # all but the first page, which holds the schema
    path.write_bytes(data)
    database = None
    with pytest.raises(DataFolderError, match="damaged"):
        database = await opened(tmp_path)
        await SqlJobs(database).counts()
    if database is not None:
        await database.close()


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    read_only(folder)
    await refused(folder, DataFolderError, "cannot be written; check its owner and mode, or set --data-dir")
    with pytest.raises(DataFolderError, match=r"cannot write .* set --data-dir"):
        await opened(folder / "below")


async def test_a_database_that_cannot_be_written_says_so_when_something_is_written(
    tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data"
    await (await opened(folder)).close()
    read_only(folder)
    with pytest.raises(DataFolderError, match="cannot be written"):
        database = await opened(folder)
        try:
            await SqlJobs(database).insert(queued())
        finally:
            await database.close()


@pytest.mark.root
async def test_a_full_disk_is_reported_and_nothing_is_partly_written(database_disk: Path) -> None:
    with pytest.raises(DiskFull, match="free some space"):
        filler(database_disk)
        await opened(database_disk)
    (database_disk / "filler").unlink()
    database = await opened(database_disk)
    jobs, kept = SqlJobs(database), []
    with pytest.raises(DiskFull, match=r"no room left .*free some space"):
        for _ in range(1000):
            kept.append(await jobs.insert(queued(env={"A": "x" * 5000}, labels={"a": "b"})))
    assert kept
    assert await jobs.counts() == {"queued": len(kept)}  # reading goes on
    assert len((await jobs.list("mine", label="a=b", limit=1000))[0]) == len(kept)
    await database.close()
    with sqlite3.connect(database_disk / "belljar.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def filler(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


async def test_a_transaction_that_fails_writes_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.write() as connection:
            await connection.execute(text("DELETE FROM alembic_version"))
            raise RuntimeError
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM alembic_version"))).scalar() == 1


async def test_readers_continue_during_a_write(database: Database) -> None:
    jobs = SqlJobs(database)
    await jobs.insert(queued())
    async with database.write() as connection:
        await connection.execute(text("DELETE FROM jobs"))
        assert await jobs.counts() == {"queued": 1}
    assert await jobs.counts() == {}


@pytest.mark.parametrize("url", ["postgresql://localhost/x", "mysql://x", "nonsense", ""])
async def test_another_database_is_refused_with_what_there_is(tmp_path: Path, url: str) -> None:
    with pytest.raises(HostError, match="sqlite:///PATH"):
        await open_database(Settings(data_dir=tmp_path, database_url=url))


async def test_the_database_may_lie_elsewhere(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path}/other/jobs.db")
    database = await open_database(settings)
    await SqlJobs(database).insert(queued())
    await database.close()
    assert (tmp_path / "other/jobs.db").exists()
    assert not (tmp_path / "data").exists()
