"""The tables that the migrations make are those of schema.py."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import sqlalchemy
from alembic.config import Config
from alembic.script import ScriptDirectory

import belljar.store
from belljar.settings import Settings
from belljar.store.opening import open_database
from belljar.store.schema import HEAD, metadata


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
    config.set_main_option("script_location", str(Path(belljar.store.__path__[0]) / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]
