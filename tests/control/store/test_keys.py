"""Keys: only a digest is stored, and a revoked key is refused."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from belljar.control.projects.key_format import new_secret
from belljar.control.projects.scopes import Scope
from belljar.control.store.database import Database
from belljar.control.store.keys import SqlKeys
from belljar.model.errors import KeyConflict, NotFound
from belljar.model.ids import new_id


@pytest.fixture
def keys(database: Database) -> SqlKeys:
    return SqlKeys(database)


async def test_a_key_is_known_by_its_secret_alone(keys: SqlKeys) -> None:
    key, secret = await keys.create("mine", "ci", scopes=frozenset({Scope.ADMIN}))
    _, other = await keys.create("other", "ci")
    assert secret != other and len(secret) > 40
    assert await keys.authenticate(secret) == key
    assert (key.project, key.name, key.admin) == ("mine", "ci", True)
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), key.id):
        assert await keys.authenticate(wrong) is None


async def test_the_secret_is_nowhere_in_the_data_folder(keys: SqlKeys, tmp_path: Path) -> None:
    _, secret = await keys.create("mine", "ci")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    assert not any(secret.encode() in path.read_bytes() for path in files)


async def test_a_revoked_key_is_worth_nothing_and_stays_revoked(keys: SqlKeys) -> None:
    key, secret = await keys.create("mine", "ci")
    revoked = await keys.revoke(key.id)
    assert revoked.revoked_at is not None
    assert await keys.authenticate(secret) is None
    assert (await keys.revoke(key.id)).revoked_at == revoked.revoked_at
    assert [each.id for each in await keys.list()] == [key.id]
    with pytest.raises(NotFound, match="belljar key ls"):
        await keys.revoke("key_of_nobody")


async def test_use_is_noted(keys: SqlKeys) -> None:
    key, secret = await keys.create("mine", "ci")
    now = datetime.now(UTC)
    await keys.record_use(key.id, now)
    found = await keys.authenticate(secret)
    assert found is not None and found.last_used_at == now


async def test_the_same_secret_is_not_kept_twice(keys: SqlKeys, tmp_path: Path) -> None:
    key, secret = await keys.create("mine", "ci")
    with pytest.raises(Exception, match="UNIQUE"):
        await keys.add(key.model_copy(update={"id": "key_2"}), secret)
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert connection.execute("SELECT count(*) FROM keys").fetchone() == (1,)


async def test_a_key_that_was_revoked_meanwhile_is_not_replaced(keys: SqlKeys) -> None:
    old, _ = await keys.create("mine", "ci")
    secret, ends_at = new_secret(), datetime.now(UTC) + timedelta(hours=1)
    new = old.model_copy(update={"id": new_id("key"), "replaces": old.id})
    await keys.revoke(old.id)  # after the rotation has read the key, before it writes
    with pytest.raises(KeyConflict, match="revoked or expired"):
        await keys.replace(old.id, new, secret, ends_at)
    assert await keys.authenticate(secret) is None
    assert [each.id for each in await keys.list()] == [old.id]


async def test_a_project_has_a_maximum_of_keys_with_the_revoked_ones(
    keys: SqlKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.control.store.keys.MAX_PROJECT_KEYS", 2)
    first, _ = await keys.create("mine", "ci")
    await keys.revoke((await keys.create("mine", "ci"))[0].id)
    new = first.model_copy(update={"id": new_id("key"), "replaces": first.id})
    with pytest.raises(KeyConflict, match="'mine' has 2 keys with the revoked ones"):
        await keys.create("mine", "ci")
    with pytest.raises(KeyConflict, match="2 are allowed"):
        await keys.replace(first.id, new, new_secret(), datetime.now(UTC))
    await keys.create("other", "ci")
    await keys.create("mine", "operator", scopes=frozenset({Scope.ADMIN}))
    assert len(await keys.list("mine")) == 3
