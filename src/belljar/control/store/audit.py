"""The rows of the audit log. They are appended and, at the end of their retention period, removed from the front.

Appending reads the newest row and writes the next in one transaction, which holds the write lock. No other statement
may change the table.
"""

from __future__ import annotations

import functools
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import ClauseElement, ColumnElement, Connection, Dialect, bindparam, func, select
from sqlalchemy.sql.compiler import SQLCompiler

from belljar.control.audit.entry import PRUNE, SYSTEM, Entry, Point, hash_of, record_of, values_of
from belljar.control.audit.operation import current_operation
from belljar.control.store.database import Database
from belljar.control.store.schema import NOW_US, audit, audit_anchor

_FIELDS = (
    "actor_kind",
    "actor_id",
    "actor_name",
    "project",
    "action",
    "object",
    "address",
    "request_id",
    "outcome",
    "details",
)
_ROW = select(audit.c.seq, audit.c.at_us, *(audit.c[name] for name in _FIELDS), audit.c.previous, audit.c.hash)
_NEWEST = select(audit.c.seq, audit.c.hash, NOW_US.label("now_us")).where(
    audit.c.seq == select(func.max(audit.c.seq)).scalar_subquery()
)
_ANCHOR = select(audit_anchor.c.through_seq, audit_anchor.c.hash).order_by(audit_anchor.c.through_seq.desc()).limit(1)
_INSERT = audit.insert()
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PAGE = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditFilter:
    """Which rows to read; None: any."""

    project: str | None = None
    #: Id or name of the actor.
    actor: str | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions of a query."""
        found: list[ColumnElement[bool]] = []
        if self.project is not None:
            found.append(audit.c.project == self.project)
        if self.actor is not None:
            found.append((audit.c.actor_id == self.actor) | (audit.c.actor_name == self.actor))
        if self.action is not None:
            found.append(audit.c.action == self.action)
        if self.since is not None:
            found.append(audit.c.at_us >= _microseconds(self.since))
        if self.until is not None:
            found.append(audit.c.at_us < _microseconds(self.until))
        return found


def append(connection: Connection, entry: Entry) -> int:
    """Append a row in the transaction of the connection, which holds the write lock. Return its number."""
    newest = connection.exec_driver_sql(_compiled(_NEWEST, connection.dialect)[0]).first()
    if newest is not None:
        seq, previous, now_us = newest
    else:
        seq, previous = _anchor(connection) or _begin(connection)
        now_us = connection.execute(select(NOW_US)).scalar_one()
    values = values_of(entry)
    seq += 1
    digest = hash_of(previous, record_of(seq, now_us, values))
    row = {"seq": seq, "at_us": now_us, **values, "previous": previous, "hash": digest}
    text, names = _compiled(_INSERT, connection.dialect)
    connection.exec_driver_sql(text, tuple(row[name] for name in names))
    return int(seq)


@functools.cache
def _compiled(statement: ClauseElement, dialect: Dialect) -> tuple[str, tuple[str, ...]]:
    """Return the text of a statement and the order of its parameters: executing it so takes a third of the time.

    Every change that a request makes waits for its row.
    """
    compiled = statement.compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler)
    return str(compiled), tuple(compiled.positiontup or ())


def record_change(
    connection: Connection, action: str, changed: str | None, *, project: str | None = None, **details: Any
) -> None:
    """Record in this transaction that the current operation, if it is this action, changes the object `changed`."""
    operation = current_operation(action)
    if operation is not None:
        append(connection, operation.entry(action, project, changed, details))
        operation.is_recorded = True


class SqlAudit:
    """The audit log in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, entries: Sequence[Entry]) -> None:
        """Append rows in one transaction of their own. Raises DiskFull, HostError."""

        def append_all(connection: Connection) -> None:
            for entry in entries:
                append(connection, entry)

        await self._database.writing(append_all)

    async def page(self, which: AuditFilter, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """Return at most `limit` records, newest first, with numbers below `before`."""
        query = _ROW.where(*which.conditions()).order_by(audit.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.seq < before)
        return await self._database.reading(lambda connection: _records(connection.execute(query)))

    async def after(self, which: AuditFilter, after: int, *, through: int, limit: int = _PAGE) -> list[dict[str, Any]]:
        """Return at most `limit` records, oldest first, with numbers above `after` up to `through`."""
        query = _ROW.where(*which.conditions(), audit.c.seq > after, audit.c.seq <= through)
        query = query.order_by(audit.c.seq).limit(limit)
        return await self._database.reading(lambda connection: _records(connection.execute(query)))

    async def ends(self) -> tuple[Point, Point]:
        """Return the anchor, after which the rows begin, and the newest row; both are the anchor of an empty log."""

        def ends(connection: Connection) -> tuple[Any, Any]:
            anchor = _anchor(connection)
            if anchor is None:
                anchor = (0, b"")
            newest = connection.execute(_NEWEST).one_or_none()
            return anchor, anchor if newest is None else newest[:2]

        anchor, newest = await self._database.reading(ends)
        return Point(seq=anchor[0], hash=anchor[1]), Point(seq=newest[0], hash=newest[1])

    async def checked(self, check: Callable[[Point, Iterator[dict[str, Any]]], T]) -> T:
        """Return what `check` returns for the anchor and all records after it, of one snapshot of the data."""

        def run(connection: Connection) -> T:
            seq, digest = _anchor(connection) or (0, b"")
            return check(Point(seq=seq, hash=digest), _all_records(connection))

        return await self._database.reading(run)

    async def expired(self, before: datetime) -> int:
        """Return how many rows from before that time are at the front, without the newest row."""

        def expired(connection: Connection) -> int:
            anchor = _anchor(connection) or (0, b"")
            return max(0, _expired_through(connection, before) - anchor[0])

        return await self._database.reading(expired)

    async def begin_prune(self, before: datetime) -> int:
        """Record that all rows at the front from before that time are removed, and return the number of the last one.

        After a run that was killed, return the number that it recorded. 0: there is nothing to remove.
        """
        last_prune = select(audit.c.details).where(audit.c.action == PRUNE).order_by(audit.c.seq.desc()).limit(1)

        def begin(connection: Connection) -> int:
            anchor = _anchor(connection) or (0, b"")
            details = connection.execute(last_prune).scalar()
            recorded = int(json.loads(details)["through_seq"]) if details is not None else 0
            if recorded > anchor[0]:
                return recorded
            through = _expired_through(connection, before)
            if through <= anchor[0]:
                return 0
            last = _record(connection.execute(_ROW.where(audit.c.seq == through)).one())
            details = {"rows": through - anchor[0], "through_seq": through, "hash": last["hash"], "at": last["at"]}
            append(connection, Entry(actor=SYSTEM, action=PRUNE, details=details))
            return through

        return await self._database.writing(begin)

    async def prune(self, through: int, limit: int) -> tuple[int, float]:
        """Remove at most `limit` rows up to that number from the front, and move the anchor to the last one.

        Return how many rows were removed, and how long the transaction held the write lock.
        """
        which = select(audit.c.seq, audit.c.hash).where(audit.c.seq <= through).order_by(audit.c.seq).limit(limit)

        def prune(connection: Connection) -> tuple[int, float]:
            started = time.monotonic()
            rows = connection.execute(which).all()
            if rows:
                connection.execute(audit.delete().where(audit.c.seq <= rows[-1].seq))
                connection.execute(audit_anchor.delete())
                connection.execute(audit_anchor.insert(), {"through_seq": rows[-1].seq, "hash": rows[-1].hash})
            return len(rows), started

        count, started = await self._database.writing(prune)
        return count, time.monotonic() - started  # committing is part of it


def _anchor(connection: Connection) -> tuple[int, bytes] | None:
    row = connection.execute(_ANCHOR).one_or_none()
    return None if row is None else (row.through_seq, row.hash)


def _begin(connection: Connection) -> tuple[int, bytes]:
    """Begin the chain of a new database with a random hash, so that no other chain continues it."""
    first = secrets.token_bytes(32)
    connection.execute(audit_anchor.insert(), {"through_seq": 0, "hash": first})
    return 0, first


def _expired_through(connection: Connection, before: datetime) -> int:
    """Return the number of the last row to remove; 0 when there is none. The newest row is always kept."""
    newest = connection.execute(select(func.max(audit.c.seq))).scalar() or 1
    kept = select(audit.c.seq).where(audit.c.at_us >= _microseconds(before)).order_by(audit.c.at_us, audit.c.seq)
    return int(connection.execute(kept.limit(1)).scalar() or newest) - 1


def _all_records(connection: Connection) -> Iterator[dict[str, Any]]:
    page = _ROW.where(audit.c.seq > bindparam("after")).order_by(audit.c.seq).limit(_PAGE)
    after = -1
    while records := _records(connection.execute(page, {"after": after})):
        yield from records
        after = records[-1]["seq"]


def _records(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [_record(row) for row in rows]


def _record(row: Any) -> dict[str, Any]:
    record = record_of(row.seq, row.at_us, row._mapping)
    return {**record, "previous_hash": _hex(row.previous), "hash": _hex(row.hash)}


def _hex(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
