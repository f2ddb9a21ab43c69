"""A short soak; `bench/fault_soak.py` runs the long one."""

from __future__ import annotations

from pathlib import Path

from support.soak import soak
from support.worker_harness import opened_harness


async def test_jobs_through_killed_workers_and_faults_are_neither_lost_nor_doubled(agent: Path, tmp_path: Path) -> None:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=30) as harness:
        report = await soak(harness, agent, 24, workers=2, kill_seconds=1.5, seed=1)
    assert report.is_clean, report
    assert report.kills > 0
