"""Ten thousand commands in one sandbox over HTTP: their latency, and whether the memory of server and machine grows.

    .venv/bin/python bench/sandbox_commands.py [COMMANDS] [--at-once N] [--data-dir DIR]

With `--data-dir`, a data folder that has the image python, the machine is real; otherwise it is a process of the agent.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sandbox_soak import site_of

from support.sandbox_soak_run import Site

SAMPLES = 10


async def main(args: argparse.Namespace, site: Site) -> None:
    await site.server.start()
    try:
        headers = {"Authorization": f"Bearer {site.key}"}
        async with httpx.AsyncClient(base_url=site.server.url, headers=headers, timeout=120) as http:
            body = {**site.request, "lifetime_seconds": 3600}
            created = await http.post("/v1/sandboxes?wait=120", json=body)
            created.raise_for_status()
            await measure(http, f"/v1/sandboxes/{created.json()['id']}", site, args)
    finally:
        await site.server.stop()


async def measure(http: httpx.AsyncClient, url: str, site: Site, args: argparse.Namespace) -> None:
    print("commands  exec p50 ms  p99 ms   a second  server MiB  machine MiB  guest MiB")
    for sample in range(SAMPLES + 1):
        count = args.commands // SAMPLES if sample else args.at_once
        began, took = time.monotonic(), list[float]()
        numbers = iter(range(count))
        async with asyncio.TaskGroup() as group:
            for _ in range(args.at_once):
                group.create_task(run(http, url, numbers, took))
        rate = count / (time.monotonic() - began)
        guest = (await http.get(f"{url}/metrics")).json()
        machine = max((resident_mib(pid) for pid in site.server.machines(site.program)), default=0)
        quantiles = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
        guest_mib = (guest["memory_bytes"] - guest["cache_bytes"]) >> 20
        print(
            f"{sample * (args.commands // SAMPLES):8} {quantiles[49]:12.1f} {quantiles[98]:7.1f} {rate:10.1f} "
            f"{site.server.use()['server, MiB']:11} {machine:12} {guest_mib:10}"
        )


async def run(http: httpx.AsyncClient, url: str, numbers: Iterator[int], took: list[float]) -> None:
    for number in numbers:
        began = time.monotonic()
        response = await http.post(f"{url}/exec", json={"args": ["sh", "-c", f"echo {number}; exit 7"]})
        took.append((time.monotonic() - began) * 1000)
        result = response.json()
        assert response.status_code == 200 and result["stdout"] == f"{number}\n" and result["exit_code"] == 7, result


def resident_mib(pid: int) -> int:
    """Return the memory of a process, in MiB, of shared pages its share."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    line = next(line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("commands", type=int, nargs="?", default=10_000)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="belljar-commands-") as place:
        asyncio.run(main(arguments, site_of(arguments.data_dir, Path(place))))
