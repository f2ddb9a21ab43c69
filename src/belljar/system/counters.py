"""Counters of this process, by name and labels, which `/metrics` exports to Prometheus.

They are here, and not in a library's registry, because commands that export nothing count too, and must start quickly.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

#: The help text of each counter; only these counters exist.
DESCRIPTIONS = {
    "belljar_api_errors": "Requests to the API that were answered with an error, by its code.",
    "belljar_artifact_bytes": "Bytes of artifacts that were kept.",
    "belljar_attempts": "Attempts that the worker of this process ended, by outcome: the job's status, or lost.",
    "belljar_background_failures": "Failures of background tasks, after which they were restarted, by task.",
    "belljar_claims": "Jobs and sandboxes that nodes were given, by kind.",
    "belljar_evictions": "Snapshots and waiting clones that were removed before they were used up, by kind.",
    "belljar_http_requests": "Requests that were answered, by method, route, and class of the status (2xx).",
    "belljar_job_errors": "Jobs that ended with an error, by its code.",
    "belljar_jobs_submitted": "Jobs that were queued by a request.",
    "belljar_leases_expired": "Attempts that were taken from a node that did not renew their lease.",
    "belljar_lost_leases": "Attempts that were stopped because their lease was lost or could not be renewed.",
    "belljar_machine_start_failures": "Machines that could not be provided, by the code of the error.",
    "belljar_machines": "Machines that were provided for jobs and sandboxes, by source: pool, snapshot, boot.",
    "belljar_output_bytes": "Bytes of jobs' output that were kept, by stream.",
    "belljar_pool_requests": "Machines that were wanted from the warm pool, by result: hit, miss.",
    "belljar_quota_refusals": "Submissions and uploads that were refused because of a quota, by quota.",
    "belljar_sandboxes_ended": "Sandboxes that nodes reported as ended, by reason.",
    "belljar_sandboxes_paused": "Sandboxes that nodes reported as paused.",
    "belljar_sandboxes_started": "Sandboxes whose machines took commands, by where the machine came from.",
    "belljar_script_bytes": "Bytes of scripts that were uploaded.",
    "belljar_write_retries": "Writes that failed in the database or the blob store and were retried.",
}

Labels = tuple[tuple[str, str], ...]

_counts: dict[str, Counter[Labels]] = {name: Counter() for name in DESCRIPTIONS}
_lock = threading.Lock()


def increment(name: str, amount: int = 1, /, **labels: str) -> None:
    """Add to a counter. The values of labels must come from a small fixed set."""
    with _lock:
        _counts[name][tuple(sorted(labels.items()))] += amount


def counter_value(name: str, **labels: str) -> int:
    """Return the value of a counter for exactly these labels."""
    return _counts[name][tuple(sorted(labels.items()))]


def all_counts() -> Mapping[str, Mapping[Labels, int]]:
    """Return the values of every counter, by its labels."""
    with _lock:
        return {name: dict(values) for name, values in _counts.items()}
