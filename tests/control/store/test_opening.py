"""Opening a data folder's database: private, migrated with a backup beside it, never silently replaced."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.blobs.store import open_blobs
from belljar.control.store.claims import SqlClaims
from belljar.control.store.jobs import SqlJobs, needed_images
from belljar.control.store.keys import SqlKeys
from belljar.control.store.opening import open_database
from belljar.control.store.schema import HEAD
from belljar.control.store.scripts import SqlScripts
from belljar.data_dir import private_folder, serving, working
from belljar.model.errors import DataFolderError, DiskFull
from belljar.model.states import Status
from belljar.settings import Settings
from support.job_queue import queued, take
from support.older_database import make_older
from support.paths import TESTS

#: Opens all that a server opens, and prints the modes of what lies in the data folder.
_SERVE_AND_LOOK = """
import asyncio, os, sys
from pathlib import Path
from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.services import open_services
from belljar.settings import Settings
from belljar.node.worker.node_name import node_name
sys.path.insert(0, sys.argv[2])
from support.job_queue import queued

async def main():
    os.umask(0)
    folder = Path(sys.argv[1])
    with node_name(folder):
        async with open_services(Settings(data_dir=folder)) as services:
            await ensure_admin_key(services.keys, folder)
            await services.job_store.insert(queued())
            await services.blobs.put_bytes("jobs/a/stdin", b"secret")
            await services.scripts.upload_code("mine", "print(1)", "python")
            for path in sorted([folder, *folder.parents, *folder.rglob("*")]):
                print(oct(path.stat().st_mode & 0o777), path)

asyncio.run(main())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private_from_the_start_under_any_umask(tmp_path: Path) -> None:
    folder = tmp_path / "new/deep/data"
    command = [sys.executable, "-c", _SERVE_AND_LOOK, str(folder), str(TESTS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    lines = (line.partition(" ") for line in run.stdout.splitlines())
    modes = {Path(path): int(digits, 8) for digits, _, path in lines}
    for path in (folder, folder.parent, folder.parent.parent, folder / "run", folder / "blobs"):
        assert modes[path] == 0o700, path
    for name in ("belljar.db", "belljar.db-wal", "belljar.db-shm", "admin.key", "run/worker"):
        assert modes[folder / name] == 0o600, name


async def test_a_folder_that_was_open_to_all_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    settings = Settings(data_dir=folder)
    database = await open_database(settings)
    open_blobs(settings)
    await ensure_admin_key(SqlKeys(database), folder)
    await database.close()
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run/server.json").write_text("{}")
    (folder / "belljar.db.backup-0001-x").write_text("")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    database = await open_database(settings)
    await SqlJobs(database).insert(queued())
    for path in (folder, folder / "run", folder / "blobs"):
        assert mode(path) == 0o700, path
    for path in [folder / "admin.key", folder / "run/server.json", *folder.glob("belljar.db*")]:
        assert mode(path) == 0o600, path
    await database.close()


async def test_a_folder_that_others_use_too_is_left_open_and_what_is_private_in_it_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "notes.txt").write_text("mine")
    await (await open_database(Settings(data_dir=folder))).close()
    assert mode(folder) == 0o755
    assert mode(folder / "belljar.db") == 0o600


def test_folders_above_a_private_one_are_private_when_they_are_made(tmp_path: Path) -> None:
    before = mode(tmp_path)
    previous = os.umask(0)
    try:
        private_folder(tmp_path / "a/b/c")
    finally:
        os.umask(previous)
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
    assert mode(tmp_path) == before


@pytest.mark.parametrize("left", ["admin.key", "blobs"])
@pytest.mark.parametrize("how", ["emptied", "gone", "without tables"])
async def test_a_lost_database_is_not_silently_replaced_by_a_new_one(tmp_path: Path, left: str, how: str) -> None:
    settings = Settings(data_dir=tmp_path)
    database = await open_database(settings)
    if left == "blobs":
        await open_blobs(settings).put_bytes("jobs/a/log", b"x")
    else:
        await ensure_admin_key(SqlKeys(database), tmp_path)
    await database.close()
    path = tmp_path / "belljar.db"
    for each in tmp_path.glob("belljar.db*"):
        each.unlink()
    if how == "emptied":
        path.touch()
    elif how == "without tables":
        sqlite3.connect(path).execute("PRAGMA journal_mode = WAL").connection.close()
        assert path.stat().st_size
    before = path.read_bytes() if path.exists() else None
    for _ in range(2):
        with pytest.raises(DataFolderError, match=r"empty or missing.*restore a backup .* or move .* away") as caught:
            await open_database(settings)
        assert str(tmp_path / left) in caught.value.message and "\n" not in caught.value.message
    assert (path.read_bytes() if path.exists() else None) == before
    (tmp_path / left).rename(tmp_path.parent / f"{left}-{how}-away")
    await (await open_database(settings)).close()


async def test_a_database_of_the_release_before_keeps_all_and_a_copy_is_beside_it(tmp_path: Path) -> None:
    kept = make_older(tmp_path)
    (tmp_path / "belljar.db").chmod(0o644)
    before = rows(tmp_path / "belljar.db")
    database = await open_database(Settings(data_dir=tmp_path))
    jobs = SqlJobs(database)
    assert await jobs.counts() == {Status(status): number for status, number in kept.items()}
    assert len((await jobs.list("mine", label="team=a", limit=100))[0]) == kept.total()
    assert len((await jobs.list("mine", label="team", status=Status.FAILED))[0]) == kept["failed"]
    assert await jobs.image_digests() == {"d" * 64}
    assert (await SqlScripts(database).get("mine", "a")) is not None
    job = await SqlClaims(database).claim("w", vcpus=1, memory_mb=256, lease_seconds=30, images=["d" * 64])
    assert job is not None and job.priority == 2 and job.env == {"SECRET": "s"}
    await database.close()
    (backup,) = tmp_path.glob("belljar.db.backup-*")
    assert backup.name.startswith("belljar.db.backup-0002-2") and mode(backup) == 0o600
    assert rows(backup) == before
    with sqlite3.connect(backup) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_results_of_an_older_database_have_the_new_field_names(tmp_path: Path) -> None:
    make_older(tmp_path)
    blocked = {"address": "10.0.0.1", "protocol": "tcp", "port": 80, "never": True, "count": 2}
    network = {"refused_count": 3, "refused": [blocked, {"name": "never", "protocol": "dns"}]}
    older = {"exit_code": 1, "error": {"code": "x", "message": 'says "never"'}, "network": network}
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM jobs WHERE status = 'failed' ORDER BY id")]
        for job_id, result in zip(
            ids, (older, {"error": older["error"]}, {"network": {"refused_count": 1}}), strict=True
        ):
            connection.execute("UPDATE jobs SET found = ? WHERE id = ?", (json.dumps(result), job_id))
    database = await open_database(Settings(data_dir=tmp_path))
    jobs = [await SqlJobs(database).get("mine", job_id) for job_id in ids]
    await database.close()
    first, second, third = (job for job in jobs if job is not None)
    assert [refusal.always_blocked for refusal in first.network.refused] == [True, False]
    assert (first.network.refused[0].count, first.network.refused[1].name) == (2, "never")
    assert first.exit_code == 1 and first.error == second.error and second.error is not None
    assert second.error.message == 'says "never"' and third.network.refused_count == 1


def rows(path: Path) -> dict[str, list[object]]:
    with sqlite3.connect(path) as connection:
        tables = ("jobs", "job_labels", "scripts", "alembic_version")
        return {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}


async def test_few_copies_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        old = tmp_path / f"belljar.db.backup-0001-2020010{number}T000000Z"
        old.write_text("")
        os.utime(old, (number, number))
    make_older(tmp_path)
    await (await open_database(Settings(data_dir=tmp_path))).close()
    names = sorted(path.name for path in tmp_path.glob("belljar.db.backup-*"))
    assert [name[:23] for name in names] == ["belljar.db.backup-0001-"] * 2 + ["belljar.db.backup-0002-"]
    assert names[0].endswith("20200103T000000Z")


async def test_commands_beside_a_server_migrate_nothing(tmp_path: Path) -> None:
    make_older(tmp_path)
    before = rows(tmp_path / "belljar.db")
    settings = Settings(data_dir=tmp_path)
    for attempt in (open_database(settings, migrate=False), needed_images(settings)):
        with pytest.raises(DataFolderError, match=rf"older version \(schema 0002.*{HEAD}\); stop .* belljar serve"):
            await attempt
    assert rows(tmp_path / "belljar.db") == before
    assert list(tmp_path.glob("belljar.db.backup-*")) == []


_HOLD = """
import sys
from pathlib import Path
from belljar.data_dir import serving, working
with {"serving": serving, "working": working}[sys.argv[1]](Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["serving", "working"])
async def test_nothing_is_migrated_while_another_process_works_there(tmp_path: Path, how: str) -> None:
    make_older(tmp_path)
    before = rows(tmp_path / "belljar.db")
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, how, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline() == b"held\n"
    mine = working if how == "serving" else serving
    with mine(tmp_path):
        with pytest.raises(DataFolderError, match=r"must be migrated.*another belljar works on .*stop it first"):
            await open_database(Settings(data_dir=tmp_path))
        assert rows(tmp_path / "belljar.db") == before
        other.communicate(timeout=30)
        await (await open_database(Settings(data_dir=tmp_path))).close()
    assert rows(tmp_path / "belljar.db")["alembic_version"] == [(HEAD,)]


def test_a_folder_has_one_server_and_one_worker(tmp_path: Path) -> None:
    for hold, words in ((serving, "serves"), (working, "works on")):
        with (
            hold(tmp_path),
            pytest.raises(DataFolderError, match=f"another belljar {words} .* already; stop it"),
            hold(tmp_path),
        ):
            pass
        with hold(tmp_path):
            pass


@pytest.mark.parametrize("table", ["jobs", "keys", "job_counts", "alembic_version"])
async def test_a_missing_table_is_reported_in_one_sentence(tmp_path: Path, table: str) -> None:
    await (await open_database(Settings(data_dir=tmp_path))).close()
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(DataFolderError, match=r"is incomplete.*restore a backup") as caught:
        await open_database(Settings(data_dir=tmp_path))
    assert "\n" not in caught.value.message and str(tmp_path) in caught.value.message


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
async def test_a_truncated_database_is_reported_as_damaged(tmp_path: Path, share: float) -> None:
    database = await open_database(Settings(data_dir=tmp_path))
    for _ in range(50):
        await SqlJobs(database).insert(queued(env={"A": "x" * 3000}))
    await database.close()
    path = tmp_path / "belljar.db"
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataFolderError, match=r"damaged or not a SQLite database; restore a backup"):
        await open_database(Settings(data_dir=tmp_path))


@pytest.mark.root
@pytest.mark.parametrize("there", [False, True])
async def test_a_start_on_a_full_disk_says_that_there_is_no_room(database_disk: Path, there: bool) -> None:
    if there:
        await (await open_database(Settings(data_dir=database_disk))).close()
    with (database_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    database = None
    with pytest.raises(DiskFull, match=r"no room left in .*free some space"):
        database = await open_database(Settings(data_dir=database_disk))
        await SqlJobs(database).insert(queued(env={"A": "x" * 50_000}))
    if database is not None:
        await database.close()
    (database_disk / "filler").unlink()
    await (await open_database(Settings(data_dir=database_disk))).close()


@pytest.mark.root
async def test_a_migration_without_room_for_the_copy_changes_nothing(database_disk: Path) -> None:
    make_older(database_disk)
    before = rows(database_disk / "belljar.db")
    for path in database_disk.glob("belljar.db-*"):
        path.unlink()
    with (database_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    os.truncate(
        database_disk / "filler", (database_disk / "filler").stat().st_size - 48 * 1024
    )  # for SQLite's own files
    with pytest.raises(DiskFull, match=r"(no room left|no space in) .*free some space"):
        await open_database(Settings(data_dir=database_disk))
    (database_disk / "filler").unlink()
    assert rows(database_disk / "belljar.db") == before
    assert list(database_disk.glob("*partial")) == []
    await (await open_database(Settings(data_dir=database_disk))).close()


async def test_a_read_only_folder_of_the_previous_release_is_refused(
    tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data"
    make_older(folder)
    read_only(folder)
    with pytest.raises(DataFolderError, match="cannot be written; check its owner and mode, or set --data-dir"):
        await open_database(Settings(data_dir=folder))


async def test_a_copy_that_is_put_back_is_a_whole_database(tmp_path: Path) -> None:
    make_older(tmp_path)
    await (await open_database(Settings(data_dir=tmp_path))).close()
    (backup,) = tmp_path.glob("belljar.db.backup-*")
    for path in (tmp_path / "belljar.db", tmp_path / "belljar.db-wal", tmp_path / "belljar.db-shm"):
        path.unlink(missing_ok=True)
    backup.rename(tmp_path / "belljar.db")
    database = await open_database(Settings(data_dir=tmp_path))
    assert await take(SqlClaims(database)) is not None
    await database.close()
