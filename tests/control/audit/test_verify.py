"""The chain of the audit log: every change to it is found, and the row is named."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from belljar.control.audit.entry import SYSTEM, Actor, ActorKind, Entry, Point, hash_of, record_of, values_of
from belljar.control.audit.heads import Heads, parse_head
from belljar.control.audit.verify import Verification, verify
from belljar.control.store.audit import AuditFilter, SqlAudit
from belljar.control.store.opening import open_database
from belljar.model.errors import InvalidOption
from belljar.settings import Settings
from support.empty_database import place_empty_database

ROWS = 9


async def written(data_dir: Path, rows: int = ROWS) -> Point:
    """Write a log of so many rows, and return its head."""
    configured = Settings(data_dir=data_dir)
    await place_empty_database(configured)
    database = await open_database(configured)
    store = SqlAudit(database)
    for number in range(rows):
        await store.append([Entry(actor=SYSTEM, action="test.do", object=f"thing {number}", details={"n": number})])
    _, head = await store.ends()
    await database.close()
    return head


async def verified(data_dir: Path, *heads: Point) -> Verification:
    database = await open_database(Settings(data_dir=data_dir))
    try:
        return await SqlAudit(database).checked(lambda anchor, records: verify(anchor, records, heads))
    finally:
        await database.close()


def execute(data_dir: Path, *statements: str) -> None:
    with sqlite3.connect(data_dir / "belljar.db") as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def rehash(data_dir: Path, seq: int) -> None:
    """Give a row the hash of its content, as somebody does who knows how."""
    names = [*values_of(Entry(actor=SYSTEM, action="x"))]
    with sqlite3.connect(data_dir / "belljar.db") as connection:
        columns = ", ".join(names)
        row = connection.execute(f"SELECT at_us, previous, {columns} FROM audit WHERE seq = {seq}").fetchone()
        record = record_of(seq, row[0], dict(zip(names, row[2:], strict=True)))
        connection.execute("UPDATE audit SET hash = ? WHERE seq = ?", (hash_of(row[1], record), seq))
    connection.close()


async def test_an_unchanged_log_is_intact(tmp_path: Path) -> None:
    head = await written(tmp_path)
    result = await verified(tmp_path, head)
    assert (result.findings, result.rows, result.head) == ([], ROWS, head)


CHANGES: dict[str, tuple[str, str]] = {
    "edited object": ("UPDATE audit SET object = 'other' WHERE seq = 4", "row 4 was edited"),
    "edited time": ("UPDATE audit SET at_us = at_us + 1 WHERE seq = 4", "row 4 was edited"),
    "edited actor": ("UPDATE audit SET actor_name = 'eve' WHERE seq = 4", "row 4 was edited"),
    "edited details": ("""UPDATE audit SET details = '{"n":77}' WHERE seq = 4""", "row 4 was edited"),
    "details that are no JSON": ("UPDATE audit SET details = '{' WHERE seq = 4", "row 4 was edited"),
    "details of another type": ("UPDATE audit SET details = x'00' WHERE seq = 4", "row 4 was edited"),
    "a time that is none": ("UPDATE audit SET at_us = 'now' WHERE seq = 4", "row 4 was edited"),
    "a time beyond the calendar": ("UPDATE audit SET at_us = 9e18 WHERE seq = 4", "row 4 was edited"),
    "a hash of another length": ("UPDATE audit SET hash = x'00' WHERE seq = 4", "no valid number and hash"),
    "a hash of zeros": ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 4", "row 4 was edited"),
    "removed row": ("DELETE FROM audit WHERE seq = 4", "row 4 was removed"),
    "removed rows": ("DELETE FROM audit WHERE seq IN (4, 5)", "rows 4 to 5 were removed"),
    "removed at the front": ("DELETE FROM audit WHERE seq = 1", "row 1 was removed"),
}


@pytest.mark.parametrize(("statement", "finding"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_changed_row_is_named(tmp_path: Path, statement: str, finding: str) -> None:
    await written(tmp_path)
    execute(tmp_path, statement)
    result = await verified(tmp_path)
    assert finding in " | ".join(result.findings)


async def test_a_row_that_was_replaced_with_a_fitting_hash_does_not_fit_its_successor(tmp_path: Path) -> None:
    await written(tmp_path)
    execute(tmp_path, "UPDATE audit SET object = 'other' WHERE seq = 4")
    rehash(tmp_path, 4)
    result = await verified(tmp_path)
    assert len(result.findings) == 1
    assert "row 5 does not follow row 4" in result.findings[0]


async def test_an_inserted_row_is_found(tmp_path: Path) -> None:
    await written(tmp_path)
    execute(
        tmp_path,
        *(f"UPDATE audit SET seq = {number + 1} WHERE seq = {number}" for number in range(ROWS, 3, -1)),
        "INSERT INTO audit SELECT 4, at_us, actor_kind, actor_id, actor_name, project, action, 'forged', address, "
        "request_id, outcome, details, hash, hash FROM audit WHERE seq = 3",
    )
    rehash(tmp_path, 4)
    findings = " | ".join((await verified(tmp_path)).findings)
    assert "row 5 was edited" in findings
    assert "row 5 does not follow row 4" in findings


async def test_exchanged_rows_are_both_named(tmp_path: Path) -> None:
    await written(tmp_path)
    execute(tmp_path, *(f"UPDATE audit SET seq = {new} WHERE seq = {old}" for old, new in ((4, 99), (5, 4), (99, 5))))
    findings = " | ".join((await verified(tmp_path)).findings)
    assert "row 4 was edited" in findings
    assert "row 5 was edited" in findings


async def test_rows_cut_off_at_the_end_are_found_by_a_head_only(tmp_path: Path) -> None:
    head = await written(tmp_path)
    execute(tmp_path, "DELETE FROM audit WHERE seq > 6")
    assert (await verified(tmp_path)).is_intact
    findings = (await verified(tmp_path, head)).findings
    assert len(findings) == 1
    assert "rows 7 to 9 are missing at the end" in findings[0]


async def test_a_log_that_was_written_anew_is_found_by_a_head_only(tmp_path: Path) -> None:
    head = await written(tmp_path)
    execute(tmp_path, "DELETE FROM audit", "DELETE FROM audit_anchor")
    assert (await written(tmp_path, ROWS + 1)).seq == ROWS + 1
    assert (await verified(tmp_path)).is_intact
    assert "another hash when it was noted" in (await verified(tmp_path, head)).findings[0]


async def test_a_log_of_another_database_does_not_fit(tmp_path: Path) -> None:
    await written(tmp_path / "one")
    await written(tmp_path / "two")
    execute(
        tmp_path / "one",
        f"ATTACH '{tmp_path}/two/belljar.db' AS two",
        "DELETE FROM audit WHERE seq >= 4",
        "INSERT INTO audit SELECT * FROM two.audit WHERE seq >= 4",
    )
    assert "row 4 does not follow row 3" in " | ".join((await verified(tmp_path / "one")).findings)


async def test_many_findings_are_counted(tmp_path: Path) -> None:
    await written(tmp_path, 60)
    execute(tmp_path, "UPDATE audit SET action = 'x'")
    result = await verified(tmp_path)
    assert (len(result.findings), result.more) == (20, 40)


async def test_retention_leaves_a_verifiable_log(tmp_path: Path) -> None:
    head = await written(tmp_path)
    database = await open_database(Settings(data_dir=tmp_path))
    store = SqlAudit(database)
    through = await store.begin_prune(datetime.now(UTC) + timedelta(days=1))
    assert through == ROWS - 1
    assert (await store.prune(through, 5))[0] == 5
    # Killed here: the next run continues with what was recorded.
    assert (await verified(tmp_path, head)).findings == []
    assert await store.begin_prune(datetime.now(UTC) + timedelta(days=1)) == through
    assert (await store.prune(through, 5))[0] == 3
    assert (await store.prune(through, 5))[0] == 0
    records = await store.page(AuditFilter(), limit=50)
    assert [(record["seq"], record["action"]) for record in records] == [(10, "audit.prune"), (9, "test.do")]
    await database.close()
    assert (await verified(tmp_path, head)).findings == []


@pytest.mark.parametrize("also", ["", "DELETE FROM audit WHERE action = 'audit.prune'"])
async def test_rows_that_somebody_else_removed_from_the_front_are_missed(tmp_path: Path, also: str) -> None:
    await written(tmp_path)
    statements = [
        "UPDATE audit_anchor SET through_seq = 3, hash = (SELECT hash FROM audit WHERE seq = 3)",
        "DELETE FROM audit WHERE seq <= 3",
    ]
    execute(tmp_path, *statements)
    findings = (await verified(tmp_path)).findings
    assert findings == ["rows up to 3 are missing, and no row records that retention removed them"]


async def test_the_log_of_an_empty_database_is_intact(tmp_path: Path) -> None:
    await written(tmp_path, 0)
    result = await verified(tmp_path)
    assert (result.findings, result.rows) == ([], 0)


TEXTS = st.text(st.characters(), max_size=300) | st.none()


@given(TEXTS, TEXTS, st.dictionaries(st.text(max_size=8), st.integers() | st.booleans() | st.text(), max_size=20))
@settings(max_examples=60, deadline=None)
def test_what_is_hashed_is_what_is_exported(name: str | None, changed: str | None, details: dict[str, object]) -> None:
    actor = Actor(kind=ActorKind.KEY, id="key_1", name=name)
    values = values_of(Entry(actor=actor, action="a", object=changed, details=details))
    connection = sqlite3.connect(":memory:")
    stored = connection.execute(f"SELECT {', '.join('?' * len(values))}", [*values.values()]).fetchone()
    connection.close()
    record = record_of(1, 1_795_000_000_000_000, dict(zip(values, stored, strict=True)))
    line = json.dumps(record)
    assert hash_of(bytes(32), json.loads(line)) == hash_of(bytes(32), record_of(1, 1_795_000_000_000_000, values))
    assert line.isascii() and line.isprintable()
    assert len(line) < 60_000


def test_heads_are_kept_in_a_file_of_the_user_alone(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads")
    first, second, third = (Point(seq=seq, hash=bytes([seq]) * 32) for seq in (1, 2, 3))
    assert heads.add(first) and heads.add(second)
    assert not heads.add(second)
    assert not Heads(heads.path).add(second)
    assert Heads(heads.path).add(third)
    assert [*heads.read()] == [first, second, third]
    assert heads.path.stat().st_mode & 0o777 == 0o600
    with heads.path.open("ab") as file:
        file.write(b"7:abc")  # a crash
    heads.remove_through(1)
    assert [*heads.read()] == [second, third]
    assert parse_head(str(third)) == third


@pytest.mark.parametrize("text", ["", "1", "1:", "x:" + "0" * 64, "1:" + "g" * 64, "-1:" + "0" * 64, "²:" + "0" * 64])
def test_a_head_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match="NUMBER:HASH"):
        parse_head(text)
