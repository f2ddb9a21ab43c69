"""What machines talked to: one row for each job or sandbox, replaced while it runs and removed with it.

A report is written under the lease of the machine that it is about, in the transaction that checks the lease.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, select

from belljar.control.store.database import Database
from belljar.control.store.sandbox_tables import sandboxes
from belljar.control.store.schema import HELD, flows, jobs
from belljar.link.leases import LeaseKey
from belljar.link.sandboxes import SandboxLease


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
        return await self._put(held, report)

    async def put_of_sandbox(self, lease: SandboxLease, report: bytes) -> bool:
        """Replace the report of a sandbox. Return False, and write nothing, when the lease is not held."""
        held = select(sandboxes.c.id, sandboxes.c.project).where(
            sandboxes.c.id == lease.sandbox_id,
            sandboxes.c.fence == lease.fence,
            sandboxes.c.node == lease.node.name,
            sandboxes.c.incarnation == lease.node.incarnation,
            sandboxes.c.lease_until.is_not(None),
        )
        return await self._put(held, report)

    async def get(self, owner: str) -> bytes | None:
        """Return the report of a job or sandbox, which the caller has looked up; None without one."""
        query = select(flows.c.report).where(flows.c.owner == owner)
        return await self._database.reading(lambda connection: connection.execute(query).scalar_one_or_none())

    async def _put(self, held: Select[tuple[str, str]], report: bytes) -> bool:
        def put(connection: Connection) -> bool:
            row = connection.execute(held).one_or_none()
            if row is None:
                return False
            remove_flows(connection, flows.c.owner == row.id)
            connection.execute(flows.insert().values(owner=row.id, project=row.project, report=report))
            return True

        return await self._database.writing(put)


def remove_flows(connection: Connection, which: ColumnElement[bool]) -> None:
    """Remove the reports of jobs or sandboxes, in the transaction that removes those."""
    connection.execute(flows.delete().where(which))
