"""Files that nothing has used for long: by kind, and never what is in use."""

from __future__ import annotations

import fcntl
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from belljar.control.logs.log import log_blob, log_path
from belljar.control.store.keys import SqlKeys
from belljar.control.store.nodes import Node, SqlNodes
from belljar.model.ids import new_id
from belljar.model.states import Status
from belljar.system.temp_folders import temp_folder
from support.data_folder import Folder
from support.job_queue import queued


def made(path: Path, days: float, content: bytes = b"12345") -> Path:
    """A file that was changed last so many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    age(path, days)
    return path


def age(path: Path, days: float) -> None:
    at = time.time() - days * 86_400
    os.utime(path, (at, at))


def snapshot(folder: Folder, name: str, days: float) -> Path:
    path = folder.path / "snapshots" / name
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    made(path / "snapshot.json", 0, json.dumps({"boot": boot, "format": 1}).encode())
    made(path / "memory", 0, bytes(8192))
    age(path, days)
    return path


async def test_snapshots_go_when_nothing_was_cloned_from_them(folder: Folder) -> None:
    old, young = snapshot(folder, "old", 31), snapshot(folder, "young", 29)
    removed = (await folder.sweep())["snapshots"].result.removed
    assert removed.count == 1 and removed.size_bytes >= 8192
    assert not old.exists() and young.exists()
    await folder.sweep(keep_unused_snapshots_days=0)
    assert young.exists()


async def test_packages_go_with_their_notes(folder: Folder) -> None:
    layers = folder.path / "layers"
    old, young = made(layers / "old.erofs", 31), made(layers / "young.erofs", 29)
    laid = made(layers / "laid/script-old.erofs", 31)
    notes = [made(layers / "wanted" / name, 99, name.encode()) for name in ("old", "young")]
    made(layers / "old.json", 31)
    assert (await folder.sweep())["layers"].result.removed.count == 2
    assert [path.exists() for path in (old, laid, young)] == [False, False, True]
    assert [path.exists() for path in notes] == [False, True]
    assert not (layers / "old.json").exists()


async def test_the_build_cache_goes_unless_an_image_is_built(folder: Folder) -> None:
    cache = folder.path / "cache"
    old, young = made(cache / "apt/bookworm/debs/a.deb", 31), made(cache / "apt/bookworm/debs/b.deb", 1)
    killed = made(cache / "build-x/root/file", 0)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (await folder.sweep())["build_cache"].result.removed.count == 0
        assert old.exists() and killed.exists()
    assert (await folder.sweep())["build_cache"].result.removed.count == 2
    assert [path.exists() for path in (old, young, cache / "build-x")] == [False, True, False]


async def test_backups_of_a_database_elsewhere_go_too(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    backups = [made(elsewhere / f"jobs.db.backup-{days}", days) for days in (50, 40)]
    await folder.sweep(database_url=f"sqlite:///{elsewhere}/jobs.db")
    assert [path.exists() for path in backups] == [False, True]


async def test_backups_go_but_for_the_newest(folder: Folder) -> None:
    backups = [made(folder.path / f"belljar.db.backup-{days}", days) for days in (50, 40, 31)]
    half = made(folder.path / "belljar.db.backup-2.partial", 2)
    assert (await folder.sweep())["backups"].result.removed.count == 3
    assert [path.exists() for path in (*backups, half)] == [False, False, True, False]


async def test_leftovers_go_when_their_process_is_gone(folder: Folder) -> None:
    run = folder.path / "run"
    made(run / "embedded/killed/file", 0)
    artifact, young = made(run / "artifacts/x.artifact", 3), made(run / "artifacts/y.artifact", 0)
    (run / "uploads/killed").mkdir(parents=True)
    with temp_folder(run / "embedded") as mine:
        made(run / "embedded/killed/file", 0)
        made(mine / "file", 400)
        age(mine, 400)
        outcomes = await folder.sweep()
        assert (mine / "file").exists() and [path.name for path in (run / "embedded").iterdir()] == [mine.name]
    assert outcomes["leftovers"].result.removed.count == 3
    assert not artifact.exists() and young.exists() and not (run / "uploads/killed").exists()


async def test_logs_that_nobody_came_back_for_become_blobs_or_go(folder: Folder) -> None:
    ended = await folder.end(Status.LOST, 1)
    await folder.blobs.delete(log_blob(ended.id))
    waiting = await folder.jobs.insert(queued())
    gone, fresh = new_id("job"), new_id("job")
    for job_id, days in ((ended.id, 1.0), (waiting.id, 1.0), (gone, 1.0), (fresh, 0.0)):
        made(log_path(folder.path, job_id), days, b"a log")
    assert (await folder.sweep())["logs"].result.removed.count == 1
    assert await folder.blobs.get_bytes(log_blob(ended.id)) == b"a log"
    left = {path.stem for path in (folder.path / "run/logs").iterdir()}
    assert left == {waiting.id, fresh}


async def test_a_log_that_is_more_than_its_blob_stays_for_its_worker(folder: Folder) -> None:
    """The blob is what an earlier attempt left; the last one's log could not be brought there yet."""
    ended = await folder.end(Status.SUCCEEDED, 1)
    path = made(log_path(folder.path, ended.id), 1.0, b"12345678 and more")
    await folder.sweep()
    assert path.read_bytes() == b"12345678 and more"


@pytest.mark.parametrize(("days", "kept"), [(8, False), (6, True)])
async def test_nodes_are_forgotten_when_they_are_gone(folder: Folder, days: float, kept: bool) -> None:
    at = datetime.now(UTC) - timedelta(days=days)
    nodes = SqlNodes(folder.database)
    facts = {"vcpus": 1, "memory_mb": 1, "largest_memory_mb": 1, "vcpus_free": 1, "memory_free_mb": 1}
    node = Node(id="n", hostname="h", version="1", started_at=at, heartbeat_at=at, running_jobs=0, **facts)  # type: ignore[arg-type]
    await nodes.heartbeat(node)
    folder.sql("UPDATE nodes SET heartbeat_at = ?", int(at.timestamp() * 1e6))  # the database's clock had written it
    assert (await folder.sweep(dry_run=True))["nodes"].result.removed.count == (not kept)
    assert (await folder.sweep())["nodes"].result.removed.count == (not kept)
    assert bool(await nodes.list()) is kept


async def test_revoked_keys_are_forgotten_and_no_others(folder: Folder) -> None:
    keys = SqlKeys(folder.database)
    revoked, _ = await keys.create("mine", "revoked")
    other, secret = await keys.create("mine", "other")
    await keys.revoke(revoked.id)
    await folder.sweep()
    assert len(await keys.list()) == 2
    assert (await folder.sweep(keep_revoked_keys_days=1e-9))["keys"].result.removed.count == 1
    assert [key.id for key in await keys.list()] == [other.id]
    assert await keys.authenticate(secret) is not None
