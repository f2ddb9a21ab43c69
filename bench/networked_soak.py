#!.venv/bin/python
"""Jobs with networks through a server that is killed with SIGKILL half-way, and whether the host is then to the letter
what it was: `nft list ruleset`, `ip netns`, `ip link`, routes, forwarding. Needs root and the built image shell.

    .venv/bin/python bench/networked_soak.py [JOBS] --data-dir DIR

Whoever changes the host's networking meanwhile is seen too: to be alone, run it below `unshare --net --mount` with
/run/netns and /run/belljar/network of its own.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.internet import WEB, simulated_internet
from support.killed_half_way import run_jobs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=int, nargs="?", default=500)
    parser.add_argument("--data-dir", type=Path, required=True)
    args = parser.parse_args()
    with simulated_internet() as internet, tempfile.TemporaryDirectory() as folder:
        internet.nameserver.zone["www.example.org"] = [WEB]
        data_dir = Path(folder) / "data"
        data_dir.mkdir()
        (data_dir / "images").symlink_to(args.data_dir / "images")
        ended = run_jobs(data_dir, args.jobs, BELLJAR_DEFAULT_MEMORY_MB="128")
    print(f"{sum(ended.counts.values())} jobs in {ended.seconds:.0f} s, {ended.interrupted} of them begun twice")
    for (status, source), count in sorted(ended.counts.items()):
        print(f"  {status} from {source}: {count}")
    for name, before in ended.before.items():
        left = len(ended.killed[name].splitlines()) - len(before.splitlines())
        same = "identical" if ended.after[name] == before else "CHANGED"
        print(f"{name:18} {len(before.splitlines()):4} lines, after the kill {left:+4}, at the end {same}")
        for line in difflib.unified_diff(before.splitlines(), ended.after[name].splitlines(), "before", "after", n=0):
            print(f"    {line}")
    sys.exit(ended.before != ended.after)


if __name__ == "__main__":
    main()
