"""The snapshots of sandboxes that projects have. Their nodes keep the frozen machines of the same ids."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, Row, func, select

from belljar.control.audit.operation import record_nothing
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.projects import being_removed
from belljar.control.store.sandbox_rows import is_past
from belljar.control.store.sandbox_tables import snapshots
from belljar.control.store.schema import projects
from belljar.model.sandbox_snapshot import SandboxSnapshot


class SqlSandboxSnapshots:
    """The snapshots of all projects."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, snapshot: SandboxSnapshot, check: Callable[[int], None]) -> SandboxSnapshot:
        """Store a snapshot and return it; that of a paused sandbox may be there already, and is returned then.

        `check` gets how many the project has with it, and refuses it by raising an error.
        """
        values = snapshot.model_dump(exclude={"spec"}) | {
            "spec": snapshot.spec.model_dump(mode="json", exclude_defaults=True)
        }

        def insert(connection: Connection) -> SandboxSnapshot:
            removed = projects.c.name == snapshot.project, projects.c.removed_at.is_not(None)
            if connection.execute(select(projects.c.name).where(*removed)).first() is not None:
                raise being_removed(snapshot.project)
            this = snapshots.c.id == snapshot.id, snapshots.c.project == snapshot.project
            row = connection.execute(select(snapshots).where(*this)).one_or_none()
            if row is not None:
                record_nothing("sandbox.snapshot")
                return _snapshot_of(row)
            connection.execute(snapshots.insert().values(values))
            check(_count(connection, snapshot.project))
            record_change(
                connection, "sandbox.snapshot", snapshot.id, project=snapshot.project, sandbox=snapshot.sandbox_id
            )
            return snapshot

        return await self._database.writing(insert)

    async def get(self, project: str, snapshot_id: str) -> SandboxSnapshot | None:
        """Return the project's snapshot."""
        query = select(snapshots).where(snapshots.c.id == snapshot_id, snapshots.c.project == project)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _snapshot_of(row)

    async def list(
        self, project: str, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[SandboxSnapshot], str | None]:
        """Return a page of the project's snapshots, newest first, and the cursor of the next page."""
        query = select(snapshots).where(snapshots.c.project == project).order_by(snapshots.c.id.desc())
        if cursor is not None:
            query = query.where(snapshots.c.id < cursor)
        rows = await self._database.reading(lambda connection: connection.execute(query.limit(limit + 1)).all())
        found = [_snapshot_of(row) for row in rows[:limit]]
        return found, found[-1].id if len(rows) > limit else None

    async def count(self, project: str) -> int:
        """Return how many the project has."""
        return await self._database.reading(lambda connection: _count(connection, project))

    async def delete(self, project: str, snapshot_id: str) -> bool:
        """Delete a snapshot; return whether the project had it. Sandboxes that were made from it go on."""

        def delete(connection: Connection) -> bool:
            this = snapshots.c.id == snapshot_id, snapshots.c.project == project
            if not connection.execute(snapshots.delete().where(*this)).rowcount:
                record_nothing("snapshot.delete")
                return False
            record_change(connection, "snapshot.delete", snapshot_id, project=project)
            return True

        return await self._database.writing(delete)

    async def remove_old(self, days: float, limit: int) -> int:
        """Remove at most `limit` snapshots that were made so long ago; return how many."""
        which = select(snapshots.c.id).where(is_past(snapshots.c.created_at, days * 86_400)).limit(limit)
        query = snapshots.delete().where(snapshots.c.id.in_(which))
        return await self._database.writing(lambda connection: connection.execute(query).rowcount)


def _count(connection: Connection, project: str) -> int:
    return int(connection.execute(select(func.count()).where(snapshots.c.project == project)).scalar_one())


def _snapshot_of(row: Row[tuple[object, ...]]) -> SandboxSnapshot:
    return SandboxSnapshot(**row._mapping)
