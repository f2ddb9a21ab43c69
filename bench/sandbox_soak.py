"""Five hundred sandboxes through a server that is killed, and what their callers were told: whether it can be true.

    .venv/bin/python bench/sandbox_soak.py [SANDBOXES] [--seed N] [--callers N] [--kill-seconds S] [--data-dir DIR]

With `--data-dir`, a data folder that has the image python, the machines are real; otherwise they are processes of the
agent. Prints how sandboxes and commands ended, every contradiction, and what is left on the host; exit code 1 unless
there is nothing of both. Bounded in count and time.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.sandbox_soak_run import Plan, Site, soak, with_agents, with_machines
from support.worker_harness import build_agent


def site_of(data_dir: Path | None, folder: Path) -> Site:
    """Return where the sandboxes of a benchmark run: with the images of a data folder, or without machines."""
    if data_dir is None:
        return with_agents(folder / "data", build_agent(folder))
    return with_machines(folder / "data", data_dir / "images")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sandboxes", type=int, nargs="?", default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--kill-seconds", type=float, default=10.0)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    plan = Plan(sandboxes=args.sandboxes, callers=args.callers, kill_seconds=args.kill_seconds, seed=args.seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="belljar-soak-") as folder:
        history, before, after = asyncio.run(soak(site_of(args.data_dir, Path(folder)), plan))
    print(f"{len(history.lives)} sandboxes in {time.monotonic() - started:.0f} s, killed: {dict(history.kills)}")
    print(f"ends: {dict(history.ends())}\ncommands: {dict(history.reports())}\nrefused: {dict(history.refusals)}")
    for name, value in before.items():
        print(f"{name:32} {value:8} → {after[name]}")
    print(f"wrong: {len(history.faults())}", *history.faults()[:20], sep="\n  ")
    sys.exit(bool(history.faults()))


if __name__ == "__main__":
    main()
