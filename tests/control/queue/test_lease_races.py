"""Leases as one process of the control plane knows them: calls of an older attempt replace nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from belljar.control.queue.held_leases import HeldLeases
from belljar.link.errors import LeaseLost
from belljar.link.leases import LeaseKey, NodeIdentity
from support.job_queue import queued

NODE = NodeIdentity("n1", "a")


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
