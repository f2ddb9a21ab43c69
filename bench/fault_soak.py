"""A thousand jobs through workers that are killed with SIGKILL, over a store and blobs that refuse.

    .venv/bin/python bench/fault_soak.py [JOBS [SEED]]

No virtual machines: the real workers, store, blobs and agents as processes (tests/support/worker_harness.py). Prints
what was lost, doubled and left over; exit code 1 unless that is nothing.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.soak import Report, soak
from support.worker_harness import build_agent, opened_harness


async def main(jobs: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        agent = build_agent(Path(folder))
        async with opened_harness(Path(folder) / "data", agent, lease_seconds=30) as harness:
            return await soak(harness, agent, jobs, workers=2, kill_seconds=6, seed=seed)


if __name__ == "__main__":
    started = time.monotonic()
    report = asyncio.run(
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    )
    print(f"{report.jobs} jobs, {report.kills} kills, {time.monotonic() - started:.0f} s")
    print(f"ended: {dict(report.statuses)}; attempts: {dict(sorted(report.attempts.items()))}")
    for name in ("lost", "doubled", "output", "leaked"):
        found = getattr(report, name)
        print(f"{name}: {len(found)}", *found[:10], sep="\n  ")
    sys.exit(not report.is_clean)
