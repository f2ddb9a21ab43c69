"""What sampling a machine's usage each second costs: processor time of the hypervisor of an idle machine, in turns.

    bench/sampling.py DATA_DIR [--seconds 18] [--turns 3] [--interval 0.1]

DATA_DIR has the image python. Each turn runs a job that sleeps, once with samples and once without. Samples come ten
times a second, so that their cost stands out from what an idle machine takes. It prints the percentage of one processor
that both took, and what one sample a second costs: at most 0.5 is wanted. The same for the worker's own process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

import httpx

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.app import create_app
from belljar.control.api.services import open_services
from belljar.local_server import read_admin_key
from belljar.node.guest import usage_sampler
from belljar.node.worker.worker import Worker
from belljar.settings import Settings

_TICKS = os.sysconf("SC_CLK_TCK")
#: After the start: what a machine does when its job begins is no cost of sampling.
_SETTLE_SECONDS = 4.0


def cpu_seconds(pids: list[int]) -> float:
    """Return the processor time that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


async def measure(http: httpx.AsyncClient, worker: Worker, seconds: float) -> tuple[float, float]:
    """Return the percentage of a processor that the idle machine takes, and that this process takes."""
    body = {"code": "import time; time.sleep(3600)", "language": "python", "memory_mb": 192}
    job = (await http.post("/v1/jobs", json=body)).json()
    while (await http.get(f"/v1/jobs/{job['id']}")).json()["status"] != "running":
        await asyncio.sleep(0.2)
    await asyncio.sleep(_SETTLE_SECONDS)
    pids = worker._context.provisioner.pids()
    before, own, started = cpu_seconds(pids), time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    elapsed = time.monotonic() - started
    found = (cpu_seconds(pids) - before) / elapsed * 100, (time.process_time() - own) / elapsed * 100
    await http.post(f"/v1/jobs/{job['id']}/cancel")
    await http.get(f"/v1/jobs/{job['id']}", params={"wait": 30})
    return found


async def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what sampling costs.")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--seconds", type=float, default=18)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--interval", type=float, default=0.1, help="of the samples; the cost is given for one a second"
    )
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder:
        data_dir = Path(folder) / "data"
        data_dir.mkdir()
        (data_dir / "images").symlink_to((words.data_dir / "images").absolute())
        settings = Settings(data_dir=data_dir, pool="off", snapshots="off", boot_timeout_seconds=600)
        async with open_services(settings) as services:
            await ensure_admin_key(services.keys, data_dir)
            queue = open_queue(services)
            worker = open_worker(services, queue, "local")
            tasks = [asyncio.create_task(each.run()) for each in (queue, worker)]
            headers = {"Authorization": f"Bearer {read_admin_key(data_dir)}"}
            transport = httpx.ASGITransport(create_app(services))
            try:
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://x", headers=headers, timeout=120
                ) as http:
                    await turns(http, worker, words.seconds, words.turns, words.interval)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


async def turns(http: httpx.AsyncClient, worker: Worker, seconds: float, count: int, sample_interval: float) -> None:
    found: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    for _ in range(count):
        for name, interval in (("without", 1e6), ("with", sample_interval)):
            usage_sampler.FIRST_INTERVAL_SECONDS = interval
            found[name].append(await measure(http, worker, seconds))
            machine, own = found[name][-1]
            print(f"{name:8} machine {machine:6.2f} %  worker {own:6.2f} %", flush=True)
    for at, what in enumerate(("machine", "worker")):
        cost = statistics.median(each[at] for each in found["with"]) - statistics.median(
            each[at] for each in found["without"]
        )
        print(f"a sample each second costs the {what} {cost * sample_interval:.3f} % of a processor (medians)")


asyncio.run(main())
