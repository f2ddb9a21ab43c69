"""What machines talked to: one row for each job or sandbox, replaced while it runs and removed with it.

A report is written under the lease of the machine that it is about, in the transaction that checks the lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.sandbox_tables import sandboxes
from belljar.control.store.schema import HELD, flows, jobs
from belljar.link.leases import LeaseKey
from belljar.link.sandboxes import SandboxLease

#: Makes one report of those of a sandbox's machines, the earlier ones first.
Join = Callable[[list[bytes]], bytes]


class _Kept(NamedTuple):
    """What is kept of a job or sandbox."""

    number: int
    report: bytes
    earlier: bytes | None


class SqlFlows:
    """The reports of flows in the database, as bytes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_of_job(self, lease: LeaseKey, report: bytes) -> bool:
        """Replace the report of a job. Return False, and write nothing, when the lease is not held."""
        held = select(jobs.c.id, jobs.c.project).where(
            HELD,
            jobs.c.id == lease.job_id,
            jobs.c.attempt == lease.attempt,
            jobs.c.worker == lease.node.name,
            jobs.c.incarnation == lease.node.incarnation,
        )
        return await self._put(held, lease.attempt, report, lambda _: None)

    async def put_of_sandbox(self, lease: SandboxLease, report: bytes, join: Join) -> bool:
        """Replace the report of a sandbox's machine, and keep those of the machines before it joined.

        Return False, and write nothing, when the lease is not held.
        """
        held = select(sandboxes.c.id, sandboxes.c.project).where(
            sandboxes.c.id == lease.sandbox_id,
            sandboxes.c.fence == lease.fence,
            sandboxes.c.node == lease.node.name,
            sandboxes.c.incarnation == lease.node.incarnation,
            sandboxes.c.lease_until.is_not(None),
        )

        def earlier(before: _Kept | None) -> bytes | None:
            if before is None:
                return None
            if before.number == lease.fence:
                return before.earlier
            return join([each for each in (before.earlier, before.report) if each is not None])

        return await self._put(held, lease.fence, report, earlier)

    async def get(self, owner: str) -> list[bytes]:
        """Return the reports of a job or sandbox, which the caller has looked up, the earlier ones first."""
        query = select(flows.c.earlier, flows.c.report).where(flows.c.owner == owner)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        return [] if row is None else [each for each in row if each is not None]

    async def _put(
        self,
        held: Select[tuple[str, str]],
        number: int,
        report: bytes,
        earlier: Callable[[_Kept | None], bytes | None],
    ) -> bool:
        def put(connection: Connection) -> bool:
            holder = connection.execute(held).one_or_none()
            if holder is None:
                return False
            stored = select(flows.c.number, flows.c.report, flows.c.earlier).where(flows.c.owner == holder.id)
            row = connection.execute(stored).one_or_none()
            before = earlier(None if row is None else _Kept(*row))
            values = {"number": number, "report": report, "earlier": before}
            query = insert(flows).values(owner=holder.id, project=holder.project, **values)
            connection.execute(query.on_conflict_do_update(index_elements=["owner"], set_=values))
            return True

        return await self._database.writing(put)


def remove_flows(connection: Connection, which: ColumnElement[bool]) -> None:
    """Remove the reports of jobs or sandboxes, in the transaction that removes those."""
    connection.execute(flows.delete().where(which))
