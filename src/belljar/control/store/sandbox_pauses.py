"""Pauses and resumes of sandboxes: what their nodes report, and what callers request.

Paused time counts for no limit: a resume moves the end of the lifetime on by the time that the sandbox was paused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from sqlalchemy import BigInteger, Connection, select, type_coerce, union

from belljar.control.audit.operation import record_nothing
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.metadata import UtcTime
from belljar.control.store.sandbox_rows import (
    frozen_columns,
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
from belljar.control.store.sandbox_tables import FROZEN, sandboxes, snapshots
from belljar.control.store.sandboxes import SandboxUse, read_sandbox_use
from belljar.control.store.schema import NOW_US
from belljar.link.sandboxes import SandboxLease
from belljar.model.sandbox import EndReason, FrozenState, ResumeProblem, Sandbox, SandboxEnd, SandboxStatus

_PAUSED_US = type_coerce(sandboxes.c.paused_at, BigInteger)
_EXPIRES_US = type_coerce(sandboxes.c.expires_at, BigInteger)


class SqlSandboxPauses:
    """The pauses of all sandboxes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- nodes ------------------------------------------------------------------------------------------------------

    async def pausing(self, lease: SandboxLease) -> bool:
        """Record that its machine is being frozen. Return False when the lease is not held."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is None:
                return False
            return now.status is SandboxStatus.PAUSING or write_status(connection, now, SandboxStatus.PAUSING)

        return await self._database.writing(write)

    async def paused(self, lease: SandboxLease, frozen: FrozenState) -> bool:
        """Pause the sandbox. Return False when the lease is not held, and was not the one that paused it."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is None:
                last = read_sandbox(connection, *last_of(lease))
                return last is not None and last.status is SandboxStatus.PAUSED and last.frozen == frozen
            if now.end_requested is not None:
                return write_end(connection, now, SandboxEnd(reason=now.end_requested, message="it was paused by then"))
            result = result_of(now.model_copy(update={"frozen": frozen, "problem": None}))
            return write_status(
                connection,
                now,
                SandboxStatus.PAUSED,
                result=result,
                **frozen_columns(frozen),
                paused_at=now_plus(0),
                lease_until=None,
                waiting_since=None,
            )

        return await self._database.writing(write)

    async def not_resumed(self, lease: SandboxLease, problem: ResumeProblem) -> bool:
        """Pause a sandbox again. Return False when the lease is not held."""

        def write(connection: Connection) -> bool:
            now = read_sandbox(connection, *held_by(lease))
            if now is None:
                return False
            if now.end_requested is not None:
                return write_end(connection, now, SandboxEnd(reason=now.end_requested, message=problem.message))
            return pause_again(connection, now, problem)

        return await self._database.writing(write)

    async def in_use(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of the frozen machines that a sandbox or a snapshot names."""
        query = union(
            select(sandboxes.c.frozen_id).where(FROZEN, sandboxes.c.frozen_id.in_(ids)),
            select(snapshots.c.id).where(snapshots.c.id.in_(ids)),
        )
        return await self._database.reading(lambda connection: frozenset(connection.execute(query).scalars()))

    # --- callers ----------------------------------------------------------------------------------------------------

    async def request_resume(
        self, project: str, sandbox_id: str, check: Callable[[SandboxUse], None] = lambda _: None
    ) -> Sandbox | None:
        """Have a paused sandbox wait for its node; return it, None when there is none. Another one stays as it is.

        `check` gets what the project has with it, and refuses it by raising an error.
        """

        def resume(connection: Connection) -> Sandbox | None:
            this = sandboxes.c.id == sandbox_id
            found = read_sandbox(connection, this, sandboxes.c.project == project)
            if found is None or found.status is not SandboxStatus.PAUSED:
                record_nothing("sandbox.resume")
                return found
            paused_us = connection.execute(select(NOW_US - _PAUSED_US).where(this)).scalar_one()
            paused_seconds = found.paused_seconds + paused_us / 1_000_000
            moved = type_coerce(_EXPIRES_US + (NOW_US - _PAUSED_US), UtcTime)
            write_status(
                connection,
                found,
                SandboxStatus.RESUMING,
                waiting_since=now_plus(0),
                expires_at=moved,
                paused_at=None,
                result=result_of(found.model_copy(update={"problem": None, "paused_seconds": paused_seconds})),
            )
            check(read_sandbox_use(connection, project))
            record_change(connection, "sandbox.resume", sandbox_id, project=project)
            return read_sandbox(connection, this)

        return await self._database.writing(resume)

    # --- retention --------------------------------------------------------------------------------------------------

    async def end_old(self, days: float, limit: int) -> list[Sandbox]:
        """End at most `limit` sandboxes that were paused so long ago; return them as they were."""
        query = select(sandboxes).where(
            sandboxes.c.status == SandboxStatus.PAUSED.value, is_past(sandboxes.c.paused_at, days * 86_400)
        )

        def end(connection: Connection) -> list[Sandbox]:
            found = [sandbox_of(row) for row in connection.execute(query.limit(limit)).all()]
            message = f"it was paused for more than {days:g} days (setting keep_paused_sandboxes_days)"
            for each in found:
                write_end(connection, each, SandboxEnd(reason=EndReason.RETENTION, message=message))
            return found

        return await self._database.writing(end)
