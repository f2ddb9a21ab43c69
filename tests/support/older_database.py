"""A database of an older schema, with jobs of every status."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config

import belljar.control.store
from belljar.control.store.rows import values_of
from belljar.model.states import Status
from support.job_queue import queued

_JOBS_OF_EACH = 3


def make_older(folder: Path) -> Counter[str]:
    """Create a database of schema 0002 in a folder, and return its number of jobs by status."""
    folder.mkdir(exist_ok=True)
    engine = sqlalchemy.create_engine(f"sqlite:///{folder}/belljar.db")
    config = Config()
    config.set_main_option("script_location", str(Path(belljar.control.store.__path__[0]) / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()
    with sqlite3.connect(folder / "belljar.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        columns = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
        for number, status in enumerate([*Status] * _JOBS_OF_EACH):
            job = queued(labels={"team": "a"}, image_digest="d" * 64, env={"SECRET": "s"})
            values = values_of(job) | {"status": status.value, "priority": number % 3}
            values |= {"created_at": number, "asked": json.dumps(values["spec"]), "found": "{}"}
            marks = ", ".join(f":{name}" for name in columns)
            connection.execute(f"INSERT INTO jobs VALUES ({marks})", {name: values.get(name) for name in columns})
            connection.execute("INSERT INTO job_labels VALUES (?, 'team', 'a')", (job.id,))
        connection.execute("INSERT INTO scripts VALUES ('mine', 'a', 'a.py', 'python', 'main.py', 1, 1, 0, NULL)")
    connection.close()
    return Counter({status.value: _JOBS_OF_EACH for status in Status})
