"""Latency over load: jobs at fixed and at random intervals, for this tree, for others, and for other runtimes.

All run in turns at each rate, in the same run, on the same schedule: so they meet the same state of a shared host. The
servers keep their default settings; each has a data folder of its own, and this data folder's images.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from belljar.bench.figures import machine_facts
from belljar.bench.load import Arrivals, Sustained, due_times, offer, summarise
from belljar.bench.peers import once, peers
from belljar.bench.server import BenchServer, bench_server
from belljar.images.catalog import Images
from belljar.model.errors import HostError, InvalidOption
from belljar.node.machines.selector import HypervisorSelector
from belljar.settings import Settings

THIS_TREE = "belljar"
_MAX_RATE = 100.0
_MAX_RATES = 20
#: Time for a pool that is measured no more to come to rest.
_PAUSE_SECONDS = 2.0
#: Callers that send their next job when their last has ended, to find the highest rate.
_CALLERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure. `seconds`: of each rate, kind of arrivals and target."""

    rates: tuple[float, ...]
    arrivals: tuple[Arrivals, ...]
    seconds: float
    #: Folders of other versions of belljar, each with its .venv.
    trees: tuple[Path, ...] = ()
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class _Target:
    name: str
    job: Callable[[], Awaitable[str | None]]
    #: None for other runtimes.
    server: BenchServer | None = None


def parse_rates(text: str) -> tuple[float, ...]:
    """Parse rates per second, such as 0.5,1,2. Raises InvalidOption."""
    try:
        rates = tuple(float(each) for each in text.split(","))
    except ValueError:
        rates = ()
    if not 0 < len(rates) <= _MAX_RATES or not all(0.01 <= rate <= _MAX_RATE for rate in rates):
        raise InvalidOption(
            f"--rates {text[:80]!r} is not a list of at most {_MAX_RATES} rates from 0.01 to {_MAX_RATE:g} per second; "
            "write for example 0.5,1,2",
            option="rates",
        )
    return rates


def find_python(tree: Path) -> Path:
    """Return the interpreter of another version's folder. Raises InvalidOption."""
    python = tree.absolute() / ".venv" / "bin" / "python"
    if not python.exists():
        raise InvalidOption(f"--tree {tree} has no .venv/bin/python; run script/bootstrap there", option="tree")
    return python


async def measure_sustained(settings: Settings, plan: Plan, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the host and the figures; `report` is called with a line for each when it is known.

    Raises UnknownImage when no image is built, HostError, InvalidOption.
    """
    image = Images(settings.data_dir).get("python")
    hypervisor = await HypervisorSelector(settings).hypervisor(image)
    pythons = {THIS_TREE: None, **{tree.absolute().name: find_python(tree) for tree in plan.trees}}
    async with AsyncExitStack() as stack:
        targets = []
        for name, python in pythons.items():
            server = await stack.enter_async_context(bench_server(settings, hypervisor.accelerator, python=python))
            await server.until_frozen()
            targets.append(_Target(name, _job_of(server), server))
        sustained = await _latencies(plan, [*targets, *await _peer_targets()], report)
        highest = [await _highest_rate(target, plan.seconds, report) for target in targets * plan.rounds]
    return {
        "machine": machine_facts(hypervisor),
        "sustained": [asdict(each) for each in sustained],
        "highest": highest,
    }


def _job_of(server: BenchServer) -> Callable[[], Awaitable[str | None]]:
    async def job() -> str | None:
        try:
            _, ended = await server.job()
        except (HostError, httpx.HTTPError):
            return None
        return str(ended["machine"]["source"])

    return job


async def _peer_targets() -> list[_Target]:
    """Return the installed runtimes that run the script: some lack an image, or may not run here."""

    def job_of(command: list[str]) -> Callable[[], Awaitable[str | None]]:
        async def job() -> str | None:
            return None if await once(command) is None else "process"

        return job

    return [_Target(name, job_of(command)) for name, command in peers().items() if await once(command) is not None]


async def _latencies(plan: Plan, targets: Sequence[_Target], report: Callable[[str], None]) -> list[Sustained]:
    """Measure each target at each rate, in turns."""
    found = []
    for number in range(plan.rounds):
        for arrivals in plan.arrivals:
            for rate in plan.rates:
                due = due_times(arrivals, rate, plan.seconds, seed=number)
                for target in targets:
                    samples = await offer(target.job, due)
                    pooled = target.server is not None
                    found.append(summarise(target.name, arrivals, rate, plan.seconds, samples, pooled=pooled))
                    report(_line(found[-1]))
                    await asyncio.sleep(_PAUSE_SECONDS if pooled else 0)
    return found


def _line(figures: Sustained) -> str:
    hits = "" if figures.hit_rate is None else f", {figures.hit_rate:.0%} from the pool"
    failed = f", {figures.failed} failed" if figures.failed else ""
    return (
        f"{figures.target}: {figures.rate_per_second:g}/s {figures.arrivals}, {figures.jobs} jobs: "
        f"p50 {figures.p50_ms:.0f} ms, p90 {figures.p90_ms:.0f} ms, p99 {figures.p99_ms:.0f} ms{hits}{failed}"
    )


async def _highest_rate(target: _Target, seconds: float, report: Callable[[str], None]) -> dict[str, Any]:
    """Return the jobs per second when each caller sends its next job as soon as its last has ended."""
    sources: list[str | None] = []
    started = time.monotonic()

    async def caller() -> None:
        while time.monotonic() < started + seconds:
            sources.append(await target.job())

    async with asyncio.TaskGroup() as group:
        for _ in range(_CALLERS):
            group.create_task(caller())
    done = [source for source in sources if source is not None]
    rate = round(len(done) / (time.monotonic() - started), 2)
    report(f"{target.name}: {rate:g} jobs per second, {_CALLERS} at a time")
    await asyncio.sleep(_PAUSE_SECONDS)
    hit_rate = round(done.count("pool") / max(1, len(done)), 3)
    return {"target": target.name, "callers": _CALLERS, "jobs_per_second": rate, "hit_rate": hit_rate}
