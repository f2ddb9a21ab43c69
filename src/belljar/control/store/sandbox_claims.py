"""What nodes write of sandboxes: claim, renew, running, ended; and the end of those whose node or time is gone.

Every write of a node is guarded by who holds the sandbox (node, process and fence), in the statement that writes. A
sandbox is held while `lease_until` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Connection, Row, and_, func, or_, select, type_coerce

from belljar.control.store.database import Database
from belljar.control.store.sandbox_rows import (
    held_by,
    is_past,
    last_of,
    now_plus,
    pause_again,
    read_sandbox,
    result_of,
    sandbox_of,
    write_end,
    write_status,
)
from belljar.control.store.sandbox_tables import LEASED, LIVE, WAITING, sandboxes
from belljar.control.store.schema import NOW_US, projects
from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import SandboxLease, SandboxOrder, SandboxStart
from belljar.model.errors import HostError
from belljar.model.sandbox import EndReason, ResumeProblem, Sandbox, SandboxEnd, SandboxStatus

_MIB = 1024 * 1024
#: Maximum sandboxes that are ended in one transaction.
_BATCH = 100
_ANY_LEASED = select(sandboxes.c.id).where(LEASED).limit(1)
#: A trigger counts the time in between (sandbox_counting.py).
_METER = sandboxes.update().where(LEASED).values(metered_until=NOW_US)
_EXPIRES_US = type_coerce(sandboxes.c.expires_at, BigInteger)
_ORDER_COLUMNS = (
    sandboxes.c.id,
    sandboxes.c.fence,
    sandboxes.c.end_requested,
    sandboxes.c.expires_at,
    (_EXPIRES_US - NOW_US).label("left_us"),
)


class SqlSandboxClaims:
    """The leases of sandboxes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def forget(self, node: NodeIdentity) -> list[Sandbox]:
        """Give up what earlier processes of the node held; return it as it is then."""
        which = (LEASED, sandboxes.c.node == node.name, sandboxes.c.incarnation != node.incarnation)
        return await self._lose(which, "the worker of its node crashed or was restarted")

    async def claim(self, node: NodeIdentity, request: ClaimRequest, lease_seconds: float) -> Sandbox | None:
        """Claim the oldest sandbox that fits, of the project that holds the fewest. None when there is none.

        Cancelling the call loses no sandbox.
        """
        query = _next_statement(node, request)
        if await self._database.reading(lambda connection: connection.execute(query).first()) is None:
            return None  # an idle node takes no write lock

        def claim(connection: Connection) -> Sandbox | None:
            sandbox_id = connection.execute(query).scalar()
            if sandbox_id is None:
                return None
            row = connection.execute(
                sandboxes.update()
                .where(sandboxes.c.id == sandbox_id)
                .values(
                    node=node.name,
                    incarnation=node.incarnation,
                    fence=sandboxes.c.fence + 1,
                    lease_until=now_plus(lease_seconds),
                    metered_until=NOW_US,
                )
                .returning(sandboxes)
            ).one()
            return sandbox_of(row)

        claiming = asyncio.ensure_future(self._database.writing(claim))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            while not claiming.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({claiming})
            if claiming.exception() is None and (sandbox := claiming.result()) is not None:
                with contextlib.suppress(HostError):  # then its lease runs out
                    await self.decline(SandboxLease(sandbox.id, sandbox.fence, node))
            raise

    async def decline(self, lease: SandboxLease) -> Sandbox | None:
        """Give back a sandbox for which nothing was done; return it, None when the lease is not held."""
        query = sandboxes.update().where(*held_by(lease)).values(lease_until=None, node=None).returning(sandboxes)

        def decline(connection: Connection) -> Sandbox | None:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            given = sandbox_of(row)
            if given.end_requested is not None:
                _end_unheld(connection, given, given.end_requested)
            return given

        return await self._database.writing(decline)

    async def renew(
        self, node: NodeIdentity, leases: Collection[SandboxLease], lease_seconds: float
    ) -> dict[SandboxLease, SandboxOrder]:
        """Renew these leases; return the orders of those that this process holds."""
        query = (
            sandboxes.update()
            .where(*_of_node(node), sandboxes.c.id.in_([lease.sandbox_id for lease in leases]))
            .values(lease_until=now_plus(lease_seconds))
            .returning(*_ORDER_COLUMNS)
        )
        rows = await self._database.writing(lambda connection: connection.execute(query).all())
        orders = _orders(node, rows)
        return {lease: orders[lease] for lease in leases if lease in orders}

    async def orders(self, node: NodeIdentity) -> dict[SandboxLease, SandboxOrder]:
        """Return what is wanted of the sandboxes that this process holds."""
        query = select(*_ORDER_COLUMNS).where(*_of_node(node))
        return _orders(node, await self._database.reading(lambda connection: connection.execute(query).all()))

    async def held(self, lease: SandboxLease) -> Sandbox | None:
        """Return the sandbox if the lease is held, else None."""
        return await self._database.reading(lambda connection: read_sandbox(connection, *held_by(lease)))

    async def note_secrets(self, lease: SandboxLease, versions: dict[str, int]) -> bool:
        """Record the versions of secrets that the sandbox is given. Return False when the lease is not held."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is None:
                return False
            result = result_of(now.model_copy(update={"secret_versions": versions}))
            connection.execute(sandboxes.update().where(sandboxes.c.id == now.id).values(result=result))
            return True

        return await self._database.writing(write)

    async def running(self, lease: SandboxLease, start: SandboxStart) -> bool:
        """Record that its machine takes commands. Return False when the lease is not held."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is None:
                return False
            if now.status is SandboxStatus.RUNNING:
                return True  # recorded already
            queue_ms = now.timings.queue_ms  # of its creation, also after a resume
            if queue_ms is None:
                queue_ms = (start.started_at - now.created_at).total_seconds() * 1000 - (start.timings.machine_ms or 0)
            timings = start.timings.model_copy(update={"queue_ms": round(max(0.0, queue_ms), 3)})
            after = now.model_copy(update={"machine": start.machine, "timings": timings, "problem": None})
            started_at = {} if now.started_at is not None else {"started_at": start.started_at}
            return write_status(
                connection,
                now,
                SandboxStatus.RUNNING,
                result=result_of(after),
                waiting_since=None,
                paused_at=None,
                **started_at,
            )

        return await self._database.writing(write)

    async def end(self, lease: SandboxLease, end: SandboxEnd) -> bool:
        """End the sandbox. Return False when the lease is not held, and was not the one that ended it."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is not None:
                return write_end(connection, now, end)
            ended = read_sandbox(connection, *last_of(lease))
            return ended is not None and ended.status.terminal

        return await self._database.writing(write)

    async def meter(self) -> None:
        """Count what the machines of sandboxes have used since the last call, for the usage of their projects."""
        if await self._database.reading(lambda connection: connection.execute(_ANY_LEASED).first()) is not None:
            await self._database.writing(lambda connection: connection.execute(_METER))

    async def shorten_leases(self, lease_seconds: float) -> None:
        """Let no lease last longer than it may, after the database's clock was set back."""
        longest = now_plus(lease_seconds)
        query = sandboxes.update().where(LEASED, sandboxes.c.lease_until > longest).values(lease_until=longest)
        await self._database.writing(lambda connection: connection.execute(query))

    async def lose_silent(self) -> list[Sandbox]:
        """Give up the sandboxes of nodes whose leases ran out; return them as they are then."""
        return await self._lose(
            (LEASED, is_past(sandboxes.c.lease_until)), "its node sent nothing until its lease ran out"
        )

    async def end_overdue(self, wait_seconds: float, grace_seconds: float) -> list[Sandbox]:
        """End what no node ends: past their lifetime, without a node for too long, or of removed projects.

        A node ends its own at the deadline; one that has not done so `grace_seconds` later loses its lease. Returns
        them as they are then.
        """
        removed = select(projects.c.name).where(projects.c.removed_at.is_not(None))
        of_removed = sandboxes.c.project.in_(removed)
        unheld, moving = sandboxes.c.lease_until.is_(None), sandboxes.c.status != SandboxStatus.PAUSED.value
        no_room = and_(WAITING, is_past(sandboxes.c.waiting_since, wait_seconds))
        overdue = and_(
            moving, or_(and_(unheld, is_past(sandboxes.c.expires_at)), is_past(sandboxes.c.expires_at, grace_seconds))
        )
        query = select(sandboxes).where(LIVE, or_(overdue, no_room, of_removed)).limit(_BATCH)
        if await self._database.reading(lambda connection: connection.execute(query.limit(1)).first()) is None:
            return []
        lifetime = select(sandboxes.c.id).where(LIVE, overdue)

        def end(connection: Connection) -> list[Sandbox]:
            found = [sandbox_of(row) for row in connection.execute(query).all()]
            late = set(connection.execute(lifetime).scalars())
            gone = set(connection.execute(removed).scalars())
            for each in found:
                if each.project in gone:
                    _end_unheld(connection, each, EndReason.PROJECT)
                elif each.id in late:
                    _end_unheld(connection, each, EndReason.LIFETIME)
                elif each.status is SandboxStatus.RESUMING:
                    pause_again(connection, each, ResumeProblem(code="no_room", message=_NO_ROOM_TO_RESUME))
                else:
                    _end_unheld(connection, each, EndReason.NO_ROOM)
            return _again(connection, found)

        return await self._database.writing(end)

    async def _lose(self, which: Collection[Any], reason: str) -> list[Sandbox]:
        query = select(sandboxes).where(*which)
        if await self._database.reading(lambda connection: connection.execute(query.limit(1)).first()) is None:
            return []

        def lose(connection: Connection) -> list[Sandbox]:
            found = [sandbox_of(row) for row in connection.execute(query).all()]
            for each in found:
                _lose_one(connection, each, reason)
            return _again(connection, found)

        return await self._database.writing(lose)


_MESSAGES = {
    EndReason.DELETED: "it was deleted",
    EndReason.LIFETIME: "its lifetime is over",
    EndReason.PROJECT: "its project was removed",
    EndReason.NO_ROOM: "no node had room for it in time; end other sandboxes, or ask for less",
}


_NO_ROOM_TO_RESUME = "the node that has it had no room in time; end or pause other sandboxes there, and try again"


def _end_unheld(connection: Connection, sandbox: Sandbox, reason: EndReason) -> None:
    write_end(connection, sandbox, SandboxEnd(reason=reason, message=_MESSAGES.get(reason, str(reason))))


def _lose_one(connection: Connection, sandbox: Sandbox, reason: str) -> None:
    """Take a sandbox from a node that is gone: what nobody has used yet waits for another node."""
    if sandbox.end_requested is not None:
        _end_unheld(connection, sandbox, sandbox.end_requested)
    elif sandbox.status is SandboxStatus.CREATING:
        query = sandboxes.update().where(sandboxes.c.id == sandbox.id)
        connection.execute(query.values(lease_until=None, node=None))
    elif sandbox.status is SandboxStatus.RESUMING:
        pause_again(connection, sandbox, ResumeProblem(code="host_error", message=f"{reason}; try again"))
    else:
        write_end(connection, sandbox, SandboxEnd(reason=EndReason.NODE_LOST, message=reason))


def _again(connection: Connection, found: list[Sandbox]) -> list[Sandbox]:
    query = select(sandboxes).where(sandboxes.c.id.in_([each.id for each in found]))
    return [sandbox_of(row) for row in connection.execute(query).all()]


def _next_statement(node: NodeIdentity, request: ClaimRequest) -> Any:
    held = sandboxes.alias("held")
    count = (
        select(func.count())
        .where(held.c.project == sandboxes.c.project, held.c.ended_at.is_(None), held.c.lease_until.is_not(None))
        .scalar_subquery()
    )
    suspended = select(projects.c.name).where(projects.c.suspended_at.is_not(None))
    query = select(sandboxes.c.id).where(
        WAITING,
        sandboxes.c.vcpus <= request.vcpus,
        sandboxes.c.memory_mb <= request.memory_mb,
        _copy_fits(request.memory_mb),
        sandboxes.c.project.not_in(suspended),
        ~is_past(sandboxes.c.expires_at),
        or_(sandboxes.c.frozen_node.is_(None), sandboxes.c.frozen_node == node.name),
    )
    if request.disk_mb is not None:
        query = query.where(sandboxes.c.disk_mb <= request.disk_mb)
    if request.images is not None:
        query = query.where(
            or_(sandboxes.c.image_digest.is_(None), sandboxes.c.image_digest.in_(sorted(request.images)))
        )
    return query.order_by(count, sandboxes.c.id).limit(1)


def _copy_fits(memory_mb: int) -> ColumnElement[bool]:
    """Return the condition that a copy's memory fits twice, as `Sandbox.needed` counts it; all else passes."""
    stored_mb = sandboxes.c.result["frozen"]["stored_bytes"].as_float() / _MIB
    return or_(
        sandboxes.c.frozen_id.is_(None),
        sandboxes.c.status != SandboxStatus.CREATING.value,
        2 * sandboxes.c.memory_mb <= memory_mb,
        sandboxes.c.memory_mb + stored_mb <= memory_mb,
    )


def _of_node(node: NodeIdentity) -> tuple[ColumnElement[bool], ...]:
    """Return the condition that this process of this node holds a sandbox."""
    return (
        sandboxes.c.lease_until.is_not(None),
        sandboxes.c.node == node.name,
        sandboxes.c.incarnation == node.incarnation,
    )


def _orders(node: NodeIdentity, rows: Collection[Row[Any]]) -> dict[SandboxLease, SandboxOrder]:
    return {
        SandboxLease(row.id, row.fence, node): SandboxOrder(
            end=None if row.end_requested is None else EndReason(row.end_requested),
            expires_at=row.expires_at,
            lifetime_seconds=row.left_us / 1_000_000,
        )
        for row in rows
    }
