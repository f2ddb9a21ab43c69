"""Numbers that only grow while this process lives, by name and labels: what `/metrics` shows as Prometheus counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: What each counter means; a counter that is not in here cannot be counted.
DESCRIPTIONS = {
    "belljar_attempts": "Attempts at jobs that this process's worker ended, by outcome: a job's status, or lost.",
    "belljar_background_failures": "Failures of background tasks, which were restarted, by task.",
    "belljar_lost_leases": "Attempts that were stopped here because their lease was lost or could not be renewed.",
    "belljar_write_retries": "Writes about jobs that the database or the blob store refused and that were tried again.",
}

Labels = tuple[tuple[str, str], ...]

_counts: dict[str, Counter[Labels]] = {name: Counter() for name in DESCRIPTIONS}


def count(name: str, **labels: str) -> None:
    """Add one. The values of labels must come from a small fixed set."""
    _counts[name][tuple(sorted(labels.items()))] += 1


def counted(name: str, **labels: str) -> int:
    """Return how often that was counted with exactly these labels."""
    return _counts[name][tuple(sorted(labels.items()))]


def all_counts() -> Mapping[str, Mapping[Labels, int]]:
    """Return every counter with what was counted so far, by its labels."""
    return {name: dict(values) for name, values in _counts.items()}
