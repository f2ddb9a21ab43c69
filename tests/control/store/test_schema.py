"""The tables that the migrations make are those of schema.py."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import belljar.control.store
from belljar.control.projects.scopes import ALL_SCOPES, Role
from belljar.control.store.keys import SqlKeys
from belljar.control.store.opening import open_database
from belljar.control.store.projects import SqlProjects
from belljar.control.store.schema import HEAD, metadata
from belljar.control.store.scripts import SqlScripts
from belljar.settings import Settings


def tables(path: Path) -> dict[str, object]:
    """Every table and index: its columns, or what it is an index on, as SQLite itself tells."""
    found: dict[str, object] = {}
    with sqlite3.connect(path) as connection:
        for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master"):
            if name != "alembic_version" and sql is not None:
                found[f"{kind} {name}"] = sorted(
                    re.split(r",?\s*\n\s*|, (?=\w+ [A-Z])", re.sub(r"[ \t]+", " ", sql).strip())
                )
    return found


async def test_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    await (await open_database(Settings(data_dir=tmp_path / "migrated"))).close()
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/direct.db")
    metadata.create_all(engine)
    engine.dispose()
    direct = tables(tmp_path / "direct.db")
    assert len(direct) >= 9
    assert tables(tmp_path / "migrated/belljar.db") == direct


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(belljar.control.store.__path__[0]) / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def migrated(path: Path, revision: str) -> None:
    """A database as a belljar of before left it."""
    config = Config()
    config.set_main_option("script_location", str(Path(belljar.control.store.__path__[0]) / "migrations"))
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


async def test_a_database_of_before_keeps_its_scripts_when_it_is_opened(tmp_path: Path) -> None:
    migrated(tmp_path / "belljar.db", "0001")
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        connection.execute("INSERT INTO scripts VALUES ('mine', 'a', 'a.py', 'python', 'main.py', 1, 1, 0)")
    database = await open_database(Settings(data_dir=tmp_path))
    script = await SqlScripts(database).get("mine", "a")
    await database.close()
    assert script is not None and script.dependencies is None


async def test_a_database_of_before_knows_the_scratch_disks_of_its_jobs(tmp_path: Path) -> None:
    migrated(tmp_path / "belljar.db", "0002")
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        for name, disk in (("with", "512"), ("without", "null")):
            spec = f'{{"resources": {{"vcpus": 1, "memory_mb": 1, "disk_mb": {disk}}}}}'
            connection.execute(
                "INSERT INTO jobs (id, project, script_id, status, attempt, max_attempts, priority, vcpus, memory_mb,"
                " created_at, cancel_requested, asked, found)"
                " VALUES (?, 'p', 's', 'queued', 0, 2, 0, 1, 1, 0, 0, ?, '{}')",
                (name, spec),
            )
    await (await open_database(Settings(data_dir=tmp_path))).close()
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert dict(connection.execute("SELECT id, disk_mb FROM jobs")) == {"with": 512, "without": 0}


async def test_keys_of_before_keep_working_with_what_they_could_do(tmp_path: Path) -> None:
    migrated(tmp_path / "belljar.db", "0006")
    secrets = {name: "bj_" + (name * 43)[:43] for name in ("operator", "plain", "revoked")}
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        for name, secret in secrets.items():
            digest = hashlib.sha256(secret.encode()).hexdigest()
            revoked = 1 if name == "revoked" else None
            values = (name, name, "mine", name == "operator", digest, revoked)
            connection.execute(
                "INSERT INTO keys (id, name, project, admin, secret_sha256, created_at, revoked_at)"
                " VALUES (?, ?, ?, ?, ?, 0, ?)",
                values,
            )
        connection.execute(
            "INSERT INTO scripts (project, id, name, language, entrypoint, size_bytes, file_count, created_at)"
            " VALUES ('of-script', 'a', 'a.py', 'python', 'main.py', 1, 1, 0)"
        )
    database = await open_database(Settings(data_dir=tmp_path))
    keys, projects = SqlKeys(database), SqlProjects(database)
    found = {name: await keys.authenticate(secret) for name, secret in secrets.items()}
    names = [project.name for project in (await projects.page(10, None))[0]]
    await database.close()
    operator, plain = found["operator"], found["plain"]
    assert operator is not None and operator.admin and operator.scopes == ALL_SCOPES
    assert plain is not None and plain.role is Role.OWNER and not plain.admin and plain.expires_at is None
    assert found["revoked"] is None
    assert names == ["default", "mine", "of-script"]
