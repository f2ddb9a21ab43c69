"""Calls over a link, as a node makes them."""

from __future__ import annotations

from datetime import UTC, datetime

from belljar.link.interface import ControlLink
from belljar.link.leases import Assignment, ClaimRequest, LeaseKey, NodeIdentity, StartReport
from belljar.link.output import OutputPiece
from belljar.model.job import Timings
from belljar.model.log_stream import LogStream
from support.job_queue import MACHINE

NODE, OTHER = NodeIdentity("n1", "first"), NodeIdentity("n2", "first")
ROOM = ClaimRequest(vcpus=8, memory_mb=8192)
STDOUT, STDERR = LogStream.STDOUT, LogStream.STDERR


def piece(offset: int, data: bytes, stream: LogStream = STDOUT) -> OutputPiece:
    return OutputPiece(stream, offset, data)


async def claim_next(link: ControlLink, node: NodeIdentity = NODE) -> Assignment:
    """Claim the next job, which is there."""
    assignment = await link.claim(node, ROOM, 0)
    assert assignment is not None
    return assignment


async def start(link: ControlLink, lease: LeaseKey) -> None:
    await link.started(lease, StartReport(started_at=datetime.now(UTC), machine=MACHINE, timings=Timings()))
