"""A thousand jobs through a server, and whether the host is then where it was: memory, descriptors, processes,
namespaces, mounts, disk. Bounded in count and time.

    .venv/bin/python bench/soak.py [JOBS] [--data-dir DIR]

The data folder must have the image python; the server runs in a folder of its own, with that folder's images.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx

from belljar.settings import load_settings

CALLERS = 4
SECONDS = 1200


def host_state(pid: int, data_dir: Path) -> dict[str, int]:
    """What could leak, counted."""
    pss = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    available = re.search(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    assert pss and available
    processes = [entry for entry in os.listdir("/proc") if entry.isdigit()]
    links = {
        os.readlink(f"/proc/{entry}/ns/{kind}") for entry in processes for kind in ("net", "mnt", "pid") if alive(entry)
    }
    return {
        "server PSS, MB": int(pss[1]) // 1024,
        "host memory available, MB": int(available[1]) // 1024,
        "server descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": len(processes),
        "namespaces": len(links),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "files in the data folder's run": sum(path.is_file() for path in (data_dir / "run").rglob("*")),
    }


def alive(pid: str) -> bool:
    try:
        return all(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "mnt", "pid"))
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", type=int, nargs="?", default=1000)
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    settings = load_settings(data_dir=args.data_dir)
    with tempfile.TemporaryDirectory(prefix="belljar-soak-") as folder:
        data_dir = Path(folder)
        (data_dir / "images").symlink_to(settings.data_dir / "images")
        command = [sys.executable, "-m", "belljar", "serve", "--port", "0", "--data-dir", folder]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        try:
            url = next(found[1] for line in server.stderr if (found := re.search(r"serves on (http://\S+),", line)))
            threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
            key = (data_dir / "admin.key").read_text().strip()
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=300) as http:
                soak(http, server.pid, data_dir, args.jobs)
        finally:
            server.terminate()
            server.wait(60)


def soak(http: httpx.Client, pid: int, data_dir: Path, jobs: int) -> None:
    def one(number: int) -> tuple[str, str]:
        body = {"code": f"print({number})", "language": "python", "timeout_seconds": 120}
        job = http.post("/v1/jobs", params={"wait": 250}, json=body).json()
        logs = http.get(f"/v1/jobs/{job['id']}/logs").text
        return (job["status"] if logs == f"{number}\n" else "wrong output"), (job["machine"] or {}).get(
            "source", "none"
        )

    def run(count: int) -> collections.Counter[tuple[str, str]]:
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
            return collections.Counter(callers.map(one, range(count), timeout=SECONDS))

    run(20)  # what is made once is made
    time.sleep(10)
    before, started = host_state(pid, data_dir), time.monotonic()
    ended = run(jobs)
    took = time.monotonic() - started
    time.sleep(10)
    after = host_state(pid, data_dir)
    print(f"{jobs} jobs in {took:.0f} s, {jobs / took:.1f} a second, {CALLERS} at a time")
    for (status, source), count in sorted(ended.items()):
        print(f"  {status} from {source}: {count}")
    for name, value in before.items():
        print(f"{name:32} {value:8} → {after[name]}")


if __name__ == "__main__":
    main()
