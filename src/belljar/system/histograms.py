"""Histograms of this process, by name and labels, which `/metrics` exports to Prometheus. See counters.py."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from belljar.system.counters import Labels

_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Description:
    """The help text of a histogram, and the upper bounds of its buckets in seconds."""

    text: str
    bounds: tuple[float, ...]


#: Only these histograms exist.
DESCRIPTIONS = {
    "belljar_claim_seconds": Description("Time to give a node the job that it was given.", _QUICK),
    "belljar_http_response_seconds": Description(
        "Time from a request until its response began, by method and route.", _QUICK
    ),
    "belljar_machine_seconds": Description("Time to provide a machine, by source: pool, snapshot, boot.", _QUICK),
    "belljar_phase_seconds": Description(
        "Time of each step of an attempt that ended by its script, by step and by the machine's source.", _LONG
    ),
    "belljar_queue_seconds": Description("Time from a job's submission until its first attempt was claimed.", _LONG),
    "belljar_sandbox_start_seconds": Description(
        "Time from a node's claim of a sandbox until its machine took commands, by the machine's source.", _QUICK
    ),
}


@dataclass(slots=True)
class Observations:
    """The values of one histogram for one set of labels."""

    #: How many were in each bucket, at last above the last bound; not cumulative.
    counts: list[int]
    sum: float = 0.0


@dataclass(slots=True)
class _Histogram:
    bounds: tuple[float, ...]
    by_labels: dict[Labels, Observations] = field(default_factory=dict)


_histograms = {name: _Histogram(each.bounds) for name, each in DESCRIPTIONS.items()}
_lock = threading.Lock()


def observe(name: str, seconds: float, /, **labels: str) -> None:
    """Add a value to a histogram. The values of labels must come from a small fixed set."""
    histogram = _histograms[name]
    key = tuple(sorted(labels.items()))
    with _lock:
        found = histogram.by_labels.get(key)
        if found is None:
            found = histogram.by_labels[key] = Observations([0] * (len(histogram.bounds) + 1))
        found.counts[bisect_left(histogram.bounds, seconds)] += 1
        found.sum += seconds


def all_observations() -> Mapping[str, Mapping[Labels, Observations]]:
    """Return the values of every histogram, by its labels."""
    with _lock:
        return {
            name: {key: Observations(each.counts.copy(), each.sum) for key, each in histogram.by_labels.items()}
            for name, histogram in _histograms.items()
        }
