"""Keeps the flows that nodes report of their machines, compressed, and returns them.

A node is trusted with the job or sandbox that it leased and with nothing else: a report has a bounded size.
"""

from __future__ import annotations

import asyncio
import gzip

from belljar.control.store.database import Database
from belljar.control.store.flows import SqlFlows
from belljar.link.errors import LeaseLost
from belljar.link.leases import LeaseKey
from belljar.link.sandboxes import SandboxLease
from belljar.model.errors import TooLarge
from belljar.model.flows import MAX_ALERTS, MAX_FLOWS, FlowReport, joined

_MAX_BYTES = 1 << 20


class FlowService:
    """The flows of jobs and sandboxes."""

    def __init__(self, store: SqlFlows) -> None:
        self._store = store

    @classmethod
    def over(cls, database: Database) -> FlowService:
        """Return the service over a database."""
        return cls(SqlFlows(database))

    async def keep_of_job(self, lease: LeaseKey, report: FlowReport) -> None:
        """Replace what is kept of a job. Raises LeaseLost, TooLarge, HostError."""
        if not await self._store.put_of_job(lease, await _packed(report)):
            raise LeaseLost

    async def keep_of_sandbox(self, lease: SandboxLease, report: FlowReport) -> None:
        """Replace what is kept of a sandbox's machine; what is kept of those before, until a pause, stays.

        Raises LeaseLost, TooLarge, HostError.
        """
        if not await self._store.put_of_sandbox(lease, await _packed(report), _join):
            raise LeaseLost

    async def get(self, owner: str) -> FlowReport:
        """Return what is kept of a job or sandbox that the caller may see; an empty report without any."""
        packed = await self._store.get(owner)
        return await asyncio.to_thread(lambda: joined([_unpack(each) for each in packed]))


async def _packed(report: FlowReport) -> bytes:
    if len(report.flows) > MAX_FLOWS or len(report.alerts) > MAX_ALERTS:
        raise TooLarge(f"a report of flows lists at most {MAX_FLOWS} flows and {MAX_ALERTS} alerts")
    packed = await asyncio.to_thread(_pack, report)
    if len(packed) > _MAX_BYTES:
        raise TooLarge(f"a report of flows has at most {_MAX_BYTES} bytes")
    return packed


def _pack(report: FlowReport) -> bytes:
    return gzip.compress(report.model_dump_json(exclude_defaults=True).encode(), compresslevel=6, mtime=0)


def _join(packed: list[bytes]) -> bytes:
    return _pack(joined([_unpack(each) for each in packed]))


def _unpack(packed: bytes) -> FlowReport:
    return FlowReport.model_validate_json(gzip.decompress(packed))
