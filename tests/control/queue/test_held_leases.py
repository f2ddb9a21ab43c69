"""Leases as one process of the control plane knows them: no more than the database, and nothing for ever."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from belljar.control.queue.held_leases import HeldLeases
from belljar.link.errors import LeaseLost
from belljar.link.leases import ClaimRequest, LeaseKey, NodeIdentity
from belljar.link.output import OutputPiece
from belljar.model.log_stream import LogStream
from support.control_plane import opened_control_plane
from support.job_queue import queued

NODE = NodeIdentity("n1", "a")
ROOM = ClaimRequest(vcpus=8, memory_mb=8192)


class SlowLog:
    """A log that takes a moment to close."""

    def __init__(self, log_list: list[SlowLog]) -> None:
        self.closed = False
        log_list.append(self)

    async def close(self) -> bool:
        await asyncio.sleep(0.01)
        self.closed = True
        return True


async def test_calls_at_the_same_time_share_one_log() -> None:
    opened: list[SlowLog] = []
    claims: Any = None
    leases = HeldLeases(claims, 30, lambda _: SlowLog(opened))  # type: ignore[arg-type,return-value]
    job = queued(attempt=2)
    await leases.grant(LeaseKey(job.id, 1, NODE), job, 0)
    await asyncio.gather(*(leases.grant(LeaseKey(job.id, 2, NODE), job, 0) for _ in range(3)))
    assert [log.closed for log in opened] == [True, False]


async def test_an_older_attempt_does_not_replace_a_later_one() -> None:
    opened: list[SlowLog] = []
    claims: Any = None
    leases = HeldLeases(claims, 30, lambda _: SlowLog(opened))  # type: ignore[arg-type,return-value]
    job = queued(attempt=2)
    await leases.grant(LeaseKey(job.id, 2, NODE), job, 0)
    with pytest.raises(LeaseLost):
        await leases.grant(LeaseKey(job.id, 1, NODE), job, 0)
    assert [log.closed for log in opened] == [False]


async def test_a_lease_that_ran_out_long_ago_is_forgotten_and_found_again(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path / "data") as control:
        link, leases = control.queue.link, []
        for _ in range(2):
            await control.submit()
            assignment = await link.claim(NODE, ROOM, 0)
            assert assignment is not None
            leases.append(assignment.lease)
        first, second = leases
        await link.append_output(first, [OutputPiece(LogStream.STDOUT, 0, b"abc")])
        link.leases._held[first.job_id].valid_until = time.monotonic() - 2 * control.settings.lease_seconds
        await link.renew(NODE, [second])
        assert set(link.leases._held) == {second.job_id}
        assert await link.append_output(first, [OutputPiece(LogStream.STDOUT, 3, b"def")]) == {LogStream.STDOUT: 6}
        assert await control.output(first.job_id) == b"abcdef"
