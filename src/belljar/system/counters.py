"""Counters of this process, by name and labels, which `/metrics` exports to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

#: The help text of each counter; only these counters exist.
DESCRIPTIONS = {
    "belljar_attempts": "Attempts that the worker of this process ended, by outcome: the job's status, or lost.",
    "belljar_background_failures": "Failures of background tasks, after which they were restarted, by task.",
    "belljar_lost_leases": "Attempts that were stopped because their lease was lost or could not be renewed.",
    "belljar_quota_refusals": "Submissions and uploads that were refused because of a quota, by quota.",
    "belljar_sandboxes_ended": "Sandboxes that nodes reported as ended, by reason.",
    "belljar_sandboxes_paused": "Sandboxes that nodes reported as paused.",
    "belljar_sandboxes_started": "Sandboxes whose machines took commands, by where the machine came from.",
    "belljar_write_retries": "Writes that failed in the database or the blob store and were retried.",
}

Labels = tuple[tuple[str, str], ...]

_counts: dict[str, Counter[Labels]] = {name: Counter() for name in DESCRIPTIONS}


def increment(name: str, **labels: str) -> None:
    """Add one to a counter. The values of labels must come from a small fixed set."""
    _counts[name][tuple(sorted(labels.items()))] += 1


def counter_value(name: str, **labels: str) -> int:
    """Return the value of a counter for exactly these labels."""
    return _counts[name][tuple(sorted(labels.items()))]


def all_counts() -> Mapping[str, Mapping[Labels, int]]:
    """Return the values of every counter, by its labels."""
    return {name: dict(values) for name, values in _counts.items()}
