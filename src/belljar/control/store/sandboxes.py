"""What callers read and write of sandboxes. What nodes write is in sandbox_claims.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, bindparam, func, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.audit.operation import record_nothing
from belljar.control.store.audit import record_change
from belljar.control.store.cursor import page_length
from belljar.control.store.database import Database
from belljar.control.store.flows import remove_flows
from belljar.control.store.projects import being_removed
from belljar.control.store.sandbox_rows import (
    is_past,
    now_plus,
    read_sandbox,
    sandbox_of,
    values_of,
    write_end,
)
from belljar.control.store.sandbox_tables import ENDED, LEASED, LIVE, sandbox_labels, sandboxes
from belljar.control.store.schema import flows, projects
from belljar.control.store.usage_series import remove_usage_series
from belljar.model.sandbox import EndReason, Sandbox, SandboxEnd, SandboxStatus

_INSERT = insert(sandboxes).on_conflict_do_nothing()
_REMOVED = select(projects.c.name).where(projects.c.name == bindparam("of_project"), projects.c.removed_at.is_not(None))


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxUse:
    """What a project has of sandboxes that have not ended; those that are paused take no vCPUs and no memory."""

    sandboxes: int
    vcpus: int
    memory_mb: int


class SqlSandboxes:
    """The sandboxes of all projects, for their callers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, sandbox: Sandbox, check: Callable[[SandboxUse], None] = lambda _: None) -> Sandbox:
        """Store a new sandbox, which waits for a node; return the existing one with its idempotency key, if any.

        Its lifetime begins now, by the database's clock. `check` gets what the project has with it, and refuses it by
        raising an error.
        """

        def insert_sandbox(connection: Connection) -> Sandbox:
            if not _insert(connection, sandbox):
                assert sandbox.idempotency_key is not None
                first = _by_key(connection, sandbox.project, sandbox.idempotency_key)
                assert first is not None
                record_nothing("sandbox.create")
                return first
            check(read_sandbox_use(connection, sandbox.project))
            record_change(connection, "sandbox.create", sandbox.id, project=sandbox.project, image=sandbox.spec.image)
            stored = read_sandbox(connection, sandboxes.c.id == sandbox.id)
            assert stored is not None
            return stored

        return await self._database.writing(insert_sandbox)

    async def insert_forks(
        self, parent: Sandbox, forks: Sequence[Sandbox], check: Callable[[SandboxUse], None]
    ) -> None:
        """Store the forks of a sandbox, all or none. `check` gets what the project has with them."""

        def insert_forks(connection: Connection) -> None:
            for fork in forks:
                _insert(connection, fork)
            check(read_sandbox_use(connection, parent.project))
            record_change(
                connection, "sandbox.fork", parent.id, project=parent.project, sandboxes=[each.id for each in forks]
            )

        await self._database.writing(insert_forks)

    async def get(self, project: str | None, sandbox_id: str) -> Sandbox | None:
        """Return the sandbox; None when the project (None: any) does not have it."""
        return await self._database.reading(lambda connection: read_sandbox(connection, *_of(project, sandbox_id)))

    async def by_key(self, project: str, idempotency_key: str) -> Sandbox | None:
        """Return the project's sandbox with this idempotency key."""
        return await self._database.reading(lambda connection: _by_key(connection, project, idempotency_key))

    async def list(
        self,
        project: str | None,
        *,
        status: SandboxStatus | None = None,
        label: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Sandbox], str | None]:
        """Return a page of sandboxes, newest first, and the cursor of the next page. `label` is NAME or NAME=VALUE."""
        query = select(sandboxes).limit(limit + 1)
        newest = sandboxes.c.id
        if label is not None:
            # Read in the order of the labels' index: one project, newest first.
            newest = sandbox_labels.c.sandbox_id
            query = query.join_from(sandbox_labels, sandboxes, sandboxes.c.id == sandbox_labels.c.sandbox_id)
            query = query.where(*_labelled(label))
            if project is not None:
                query = query.where(sandbox_labels.c.project == project)
        if project is not None:
            query = query.where(sandboxes.c.project == project)
        if status is not None:
            query = query.where(sandboxes.c.status == status.value)
        if cursor is not None:
            query = query.where(newest < cursor)
        query = query.order_by(newest.desc())

        def page(connection: Connection) -> tuple[list[Sandbox], bool]:
            sizes = query.with_only_columns(func.length(sandboxes.c.spec) + func.length(sandboxes.c.result))
            lengths = connection.execute(sizes).scalars().all()
            count = min(limit, page_length(lengths))
            return [sandbox_of(row) for row in connection.execute(query.limit(count)).all()], len(lengths) > count

        found, has_more = await self._database.reading(page)
        return found, found[-1].id if has_more else None

    async def use(self, project: str) -> SandboxUse:
        """Return what the project has."""
        return await self._database.reading(lambda connection: read_sandbox_use(connection, project))

    async def request_end(
        self, project: str | None, sandbox_id: str, reason: EndReason, message: str
    ) -> Sandbox | None:
        """End a sandbox that no node holds, else have its node end it; return it, None when there is none.

        One that has ended, or is to end for another reason, stays as it is.
        """

        def request_end(connection: Connection) -> Sandbox | None:
            found = read_sandbox(connection, *_of(project, sandbox_id))
            if found is None:
                return None
            if found.status.terminal:
                record_nothing("sandbox.delete")
                return found
            record_change(connection, "sandbox.delete", sandbox_id, project=found.project)
            this = sandboxes.c.id == sandbox_id
            order = sandboxes.update().where(this, LEASED, sandboxes.c.end_requested.is_(None))
            connection.execute(order.values(end_requested=reason.value))
            if connection.execute(select(sandboxes.c.id).where(this, LEASED)).first() is None:
                write_end(connection, found, SandboxEnd(reason=reason, message=message))
            return read_sandbox(connection, this)

        return await self._database.writing(request_end)

    async def extend(self, project: str, sandbox_id: str, lifetime_seconds: float) -> Sandbox | None:
        """Have its lifetime end so many seconds from now; return it, None when there is none.

        One that has ended, is to end, or is paused, stays as it is.
        """

        def extend(connection: Connection) -> Sandbox | None:
            this = _of(project, sandbox_id)
            query = sandboxes.update().where(*this, LIVE, sandboxes.c.end_requested.is_(None))
            running = query.where(sandboxes.c.paused_at.is_(None))
            changed = connection.execute(running.values(expires_at=now_plus(lifetime_seconds))).rowcount
            found = read_sandbox(connection, *this)
            if changed and found is not None:
                record_change(connection, "sandbox.extend", sandbox_id, project=project, seconds=lifetime_seconds)
            else:
                record_nothing("sandbox.extend")
            return found

        return await self._database.writing(extend)

    async def set_public_ports(self, project: str, sandbox_id: str, ports: tuple[int, ...]) -> Sandbox | None:
        """Replace the ports that anyone may reach; return the sandbox, None when there is none.

        One that has ended stays as it is.
        """

        def change(connection: Connection) -> Sandbox | None:
            this = _of(project, sandbox_id)
            found = read_sandbox(connection, *this)
            if found is None or found.status.terminal or found.spec.public_ports == ports:
                record_nothing("sandbox.change")
                return found
            changed = found.model_copy(update={"spec": found.spec.model_copy(update={"public_ports": ports})})
            spec = values_of(changed)["spec"]
            connection.execute(sandboxes.update().where(*this).values(spec=spec))
            record_change(connection, "sandbox.change", sandbox_id, project=project, public_ports=list(ports))
            return changed

        return await self._database.writing(change)

    async def remove_ended(self, days: float, limit: int) -> int:
        """Remove at most `limit` sandboxes that ended that long ago; return how many."""
        which = select(sandboxes.c.id).where(ENDED, is_past(sandboxes.c.ended_at, days * 86_400)).limit(limit)

        def remove(connection: Connection) -> int:
            ids = connection.execute(which).scalars().all()
            if ids:
                connection.execute(sandbox_labels.delete().where(sandbox_labels.c.sandbox_id.in_(ids)))
                remove_flows(connection, flows.c.owner.in_(ids))
                remove_usage_series(connection, ids)
                connection.execute(sandboxes.delete().where(sandboxes.c.id.in_(ids)))
            return len(ids)

        return await self._database.writing(remove)

    async def count_ended(self, days: float) -> int:
        """Return how many sandboxes ended that long ago."""
        query = select(func.count()).where(ENDED, is_past(sandboxes.c.ended_at, days * 86_400))
        return await self._database.reading(lambda connection: connection.execute(query).scalar_one())

    async def counts(self) -> dict[SandboxStatus, int]:
        """Return the number of sandboxes of each status that has any, without those that have ended."""
        query = select(sandboxes.c.status, func.count()).where(LIVE).group_by(sandboxes.c.status)
        rows = await self._database.reading(lambda connection: connection.execute(query).all())
        return {SandboxStatus(status): number for status, number in rows}


def read_sandbox_use(connection: Connection, project: str) -> SandboxUse:
    """Return what the project has of sandboxes that have not ended."""
    paused = sandboxes.c.status == SandboxStatus.PAUSED.value
    of_project = (sandboxes.c.project == project, LIVE)
    count = select(func.count()).where(*of_project).scalar_subquery()
    sums = select(
        count,
        func.coalesce(func.sum(sandboxes.c.vcpus), 0),
        func.coalesce(func.sum(sandboxes.c.memory_mb), 0),
    ).where(*of_project, ~paused)
    number, vcpus, memory_mb = connection.execute(sums).one()
    return SandboxUse(sandboxes=number, vcpus=vcpus, memory_mb=memory_mb)


def _insert(connection: Connection, sandbox: Sandbox) -> bool:
    """Insert a sandbox, whose lifetime begins now; return whether its idempotency key was new."""
    values = values_of(sandbox) | {
        "waiting_since": now_plus(0),
        "expires_at": now_plus(sandbox.spec.lifetime_seconds),
    }
    if connection.execute(_INSERT.values(values)).rowcount == 0:
        return False
    if connection.execute(_REMOVED, {"of_project": sandbox.project}).first() is not None:
        raise being_removed(sandbox.project)
    labels = [
        {"sandbox_id": sandbox.id, "name": name, "value": value, "project": sandbox.project}
        for name, value in sandbox.spec.labels.items()
    ]
    if labels:
        connection.execute(sandbox_labels.insert(), labels)
    return True


def _of(project: str | None, sandbox_id: str) -> list[ColumnElement[bool]]:
    conditions = [sandboxes.c.id == sandbox_id]
    return conditions if project is None else [*conditions, sandboxes.c.project == project]


def _by_key(connection: Connection, project: str, idempotency_key: str) -> Sandbox | None:
    return read_sandbox(connection, sandboxes.c.project == project, sandboxes.c.idempotency_key == idempotency_key)


def _labelled(label: str) -> list[ColumnElement[bool]]:
    name, equals, value = label.partition("=")
    named = sandbox_labels.c.name == name
    return [named, sandbox_labels.c.value == value] if equals else [named]
