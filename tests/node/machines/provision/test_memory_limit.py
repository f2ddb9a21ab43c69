"""The memory that the pool may keep and fill."""

from __future__ import annotations

from belljar.node.machines.provision.memory_limit import MemoryLimit


def test_the_limit_is_the_smaller_of_the_budget_and_what_jobs_leave() -> None:
    free_mb = 1000.0
    limit = MemoryLimit(400, lambda: free_mb)
    assert (limit.keep_mb(), limit.fill_mb(0)) == (400, 400)
    free_mb = 100.0
    assert (limit.keep_mb(), limit.fill_mb(0)) == (100, 100)
    free_mb = -5.0
    assert limit.keep_mb() == 0


def test_memory_that_jobs_left_a_moment_ago_is_not_filled_yet() -> None:
    free_mb = 100.0
    limit = MemoryLimit(400, lambda: free_mb)
    assert limit.fill_mb(0) == 100
    free_mb = 400.0
    assert limit.keep_mb() == 400
    assert [limit.fill_mb(now) for now in (1, 9, 10, 15)] == [100] * 4
    assert limit.fill_mb(25) == 400


def test_a_limit_that_nobody_asked_for_is_not_remembered() -> None:
    free_mb = 100.0
    limit = MemoryLimit(400, lambda: free_mb)
    limit.fill_mb(0)
    free_mb = 400.0
    assert limit.fill_mb(100) == 400
