"""Offers jobs at a rate, whether or not earlier ones have ended, and summarises what became of them.

An open loop: a job's time counts from the moment when it was due, so a system that falls behind shows it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

#: Jobs at once; what is due beyond is refused, and counts as failed.
_MAX_RUNNING = 100
#: The last jobs may take this long.
_LAST_SECONDS = 120.0
#: The part of each run before anything counts: a pool needs it to learn the rate.
_SETTLING_PART = 0.25


class Arrivals(StrEnum):
    """The intervals between jobs."""

    #: All equal.
    FIXED = "fixed"
    #: Random and independent, so that some jobs come together.
    POISSON = "poisson"


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one job."""

    #: Seconds from the begin of the run to the moment when it was due.
    due: float
    #: Milliseconds from that moment to its answer; None: it failed or was refused.
    milliseconds: float | None
    #: Where its machine came from; empty without one.
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sustained:
    """The latencies of one target at one rate."""

    #: A tree of belljar, or another runtime.
    target: str
    arrivals: Arrivals
    rate_per_second: float
    jobs: int
    failed: int
    #: The part of the jobs whose machine came from the pool; None for other runtimes.
    hit_rate: float | None
    p50_ms: float
    p90_ms: float
    p99_ms: float


def due_times(arrivals: Arrivals, rate_per_second: float, seconds: float, seed: int) -> list[float]:
    """Return when jobs are due, in seconds from the begin; the same for the same seed."""
    draw = random.Random(f"{arrivals} {rate_per_second} {seed}")  # noqa: S311 (a repeatable load, no secret)
    times: list[float] = []
    at = 0.0
    while True:
        at += draw.expovariate(rate_per_second) if arrivals is Arrivals.POISSON else 1 / rate_per_second
        if at >= seconds:
            return times
        times.append(at)


async def offer(job: Callable[[], Awaitable[str | None]], due: Sequence[float]) -> list[Sample]:
    """Start a job at each of these times. `job` returns its machine's source, or None when it failed."""
    started = time.monotonic()
    samples: list[Sample] = []
    running: set[asyncio.Task[None]] = set()

    async def one(at: float) -> None:
        source = await job()
        took = time.monotonic() - started - at
        samples.append(Sample(at, None if source is None else took * 1000, source or ""))

    try:
        for at in due:
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            if len(running) >= _MAX_RUNNING:
                samples.append(Sample(at, None))
                continue
            task = asyncio.create_task(one(at))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(set(running), timeout=_LAST_SECONDS)
    finally:
        unfinished = list(running)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    missing = len(due) - len(samples)
    return samples + [Sample(due[-1], None)] * missing


def summarise(
    target: str, arrivals: Arrivals, rate_per_second: float, seconds: float, samples: Sequence[Sample], *, pooled: bool
) -> Sustained:
    """Summarise a run of that many seconds, without the jobs of its first quarter."""
    counted = [sample for sample in samples if sample.due >= seconds * _SETTLING_PART]
    times = sorted(sample.milliseconds for sample in counted if sample.milliseconds is not None)
    hits = sum(sample.source == "pool" for sample in counted)

    def quantile(part: float) -> float:
        return round(times[min(len(times) - 1, int(part * len(times)))], 1) if times else 0.0

    return Sustained(
        target=target,
        arrivals=arrivals,
        rate_per_second=rate_per_second,
        jobs=len(counted),
        failed=len(counted) - len(times),
        hit_rate=round(hits / len(counted), 3) if pooled and counted else None,
        p50_ms=quantile(0.5),
        p90_ms=quantile(0.9),
        p99_ms=quantile(0.99),
    )
