"""Records and files of the control plane that are past their period: nodes, keys, uploads, backups."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from belljar.control.projects.people import SessionOwner
from belljar.control.projects.scopes import Role
from belljar.control.store.keys import SqlKeys
from belljar.control.store.nodes import Node, SqlNodes
from belljar.control.store.people import SqlPeople
from belljar.control.store.projects import SqlProjects
from belljar.control.store.sessions import SqlSessions
from support.data_folder import Folder
from support.old_files import old_file


@pytest.mark.parametrize(("days", "kept"), [(8, False), (6, True)])
async def test_nodes_without_a_heartbeat_are_removed(folder: Folder, days: float, kept: bool) -> None:
    at = datetime.now(UTC) - timedelta(days=days)
    nodes = SqlNodes(folder.database)
    facts = {"vcpus": 1, "memory_mb": 1, "largest_memory_mb": 1, "vcpus_free": 1, "memory_free_mb": 1}
    node = Node(id="n", hostname="h", version="1", started_at=at, heartbeat_at=at, running_jobs=0, **facts)  # type: ignore[arg-type]
    await nodes.heartbeat(node)
    folder.sql("UPDATE nodes SET heartbeat_at = ?", int(at.timestamp() * 1e6))  # the database's clock had written it
    assert (await folder.sweep(dry_run=True))["nodes"].result.removed.count == (not kept)
    assert (await folder.sweep())["nodes"].result.removed.count == (not kept)
    assert bool(await nodes.list()) is kept


async def test_revoked_keys_are_removed_and_no_others(folder: Folder) -> None:
    keys = SqlKeys(folder.database)
    revoked, _ = await keys.create("mine", "revoked")
    await keys.create("mine", "expired", expires_at=datetime.now(UTC) - timedelta(days=1))
    other, secret = await keys.create("mine", "other")
    await keys.revoke(revoked.id)
    await folder.sweep()
    assert len(await keys.list()) == 3
    assert (await folder.sweep(keep_revoked_keys_days=1e-9))["keys"].result.removed.count == 2
    assert [key.id for key in await keys.list()] == [other.id]
    assert await keys.authenticate(secret) is not None


async def test_ended_sessions_and_people_without_a_project_or_session_are_removed(folder: Folder) -> None:
    people, sessions = SqlPeople(folder.database), SqlSessions(folder.database, SqlKeys(folder.database))
    await SqlProjects(folder.database).create("mine")
    now, ids = datetime.now(UTC), []
    for name in ("gone", "member", "signed-in"):
        email = f"{name}@example.com"
        await people.set_member("mine", email, Role.VIEWER, lambda _: None)
        person = await people.sign_in(issuer="i", subject=name, email=email, name="", is_operator=False)
        assert person is not None
        ids.append(person.id)
    ended, _, _ = await sessions.start(SessionOwner(person_id=ids[1]), now + timedelta(days=1))
    await sessions.end(ended.id)
    await sessions.start(SessionOwner(person_id=ids[1]), now - timedelta(days=1))
    live, _, _ = await sessions.start(SessionOwner(person_id=ids[2]), now + timedelta(days=1))
    for name in ("gone", "signed-in"):
        await people.remove_member("mine", f"{name}@example.com", lambda _: None)
    folder.sql("UPDATE sessions SET ended_at = NULL WHERE id = ?", live.id)  # the removal had ended it
    swept = await folder.sweep()
    assert (swept["sessions"].result.removed.count, swept["people"].result.removed.count) == (0, 0)
    swept = await folder.sweep(keep_ended_sessions_days=1e-9)
    assert (swept["sessions"].result.removed.count, swept["people"].result.removed.count) == (2, 1)
    assert [bool(await people.get(id)) for id in ids] == [False, True, True]
    assert await sessions.get(live.id) is not None and await sessions.get(ended.id) is None


async def test_uploads_of_killed_processes_are_removed(folder: Folder) -> None:
    killed = folder.path / "run/uploads/killed"
    killed.mkdir(parents=True)
    assert (await folder.sweep(dry_run=True))["uploads"].result.removed.count == 0
    assert (await folder.sweep())["uploads"].result.removed.count == 1
    assert not killed.exists()


async def test_backups_of_a_database_elsewhere_are_removed_too(folder: Folder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    backups = [old_file(elsewhere / f"jobs.db.backup-{days}", days) for days in (50, 40)]
    await folder.sweep(database_url=f"sqlite:///{elsewhere}/jobs.db")
    assert [path.exists() for path in backups] == [False, True]


async def test_all_old_backups_but_the_newest_are_removed(folder: Folder) -> None:
    backups = [old_file(folder.path / f"belljar.db.backup-{days}", days) for days in (50, 40, 31)]
    half = old_file(folder.path / "belljar.db.backup-2.partial", 2)
    assert (await folder.sweep())["backups"].result.removed.count == 3
    assert [path.exists() for path in (*backups, half)] == [False, False, True, False]
