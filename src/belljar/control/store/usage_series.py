"""What machines used over their lives: one compressed row for each job and sandbox, deleted with it.

A node writes it under its lease: the row of a later attempt is never overwritten by an earlier one.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, Select, select
from sqlalchemy.dialects.sqlite import insert

from belljar.control.store.database import Database
from belljar.control.store.sandbox_tables import sandboxes
from belljar.control.store.schema import HELD, jobs, usage_series
from belljar.link.leases import LeaseKey
from belljar.link.sandboxes import SandboxLease
from belljar.model.usage_series import UsageSeries


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """The series of a job's attempt, or of one lease of a sandbox."""

    number: int
    series: UsageSeries


class SqlUsageSeries:
    """The series in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put_of_job(self, lease: LeaseKey, series: UsageSeries) -> bool:
        """Store the series so far of an attempt; return False, and store nothing, when it does not hold the job."""
        node = lease.node
        held = select(jobs.c.project).where(
            HELD,
            jobs.c.worker == node.name,
            jobs.c.incarnation == node.incarnation,
            jobs.c.id == lease.job_id,
            jobs.c.attempt == lease.attempt,
        )
        return await self._put(lease.job_id, lease.attempt, held, series)

    async def put_of_sandbox(self, lease: SandboxLease, series: UsageSeries) -> bool:
        """Store the series so far of a sandbox; return False, and store nothing, when the lease is not held."""
        held = select(sandboxes.c.project).where(
            sandboxes.c.lease_until.is_not(None),
            sandboxes.c.id == lease.sandbox_id,
            sandboxes.c.fence == lease.fence,
            sandboxes.c.node == lease.node.name,
            sandboxes.c.incarnation == lease.node.incarnation,
        )
        return await self._put(lease.sandbox_id, lease.fence, held, series)

    async def get(self, owner: str) -> StoredSeries | None:
        """Return the newest series of a job or sandbox; None when it has none."""
        query = select(usage_series.c.number, usage_series.c.data).where(usage_series.c.owner == owner)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        return StoredSeries(row.number, UsageSeries.model_validate_json(zlib.decompress(row.data)))

    async def _put(self, owner: str, number: int, held: Select[tuple[str]], series: UsageSeries) -> bool:
        values = {"number": number, "data": zlib.compress(series.model_dump_json().encode())}

        def put(connection: Connection) -> bool:
            project = connection.execute(held).scalar_one_or_none()
            if project is None:
                return False
            query = insert(usage_series).values(owner=owner, project=project, **values)
            connection.execute(query.on_conflict_do_update(index_elements=["owner"], set_=values))
            return True

        return await self._database.writing(put)


def remove_usage_series(connection: Connection, owners: Collection[str]) -> None:
    """Remove the series of jobs or sandboxes whose rows are being removed."""
    connection.execute(usage_series.delete().where(usage_series.c.owner.in_(list(owners))))
