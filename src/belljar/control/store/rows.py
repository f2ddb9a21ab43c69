"""A job as a row and back: what never changes in one JSON column, what came of it in another."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from belljar.model.job import Job

#: What was asked for, apart from the columns that queries look at.
ASKED = frozenset(
    {
        "language",
        "entrypoint",
        "image",
        "image_digest",
        "resources",
        "timeout_seconds",
        "args",
        "env",
        "stdin_bytes",
        "egress",
        "artifacts",
        "labels",
        "dependencies",
        "request_sha256",
    }
)
#: What came of it, apart from those columns.
FOUND = frozenset(
    {
        "exit_code",
        "signal",
        "error",
        "timings",
        "usage",
        "network",
        "machine",
        "logs",
        "kept_artifacts",
        "lost_attempts",
    }
)
#: Columns that are fields of the job under the same name: the rest.
COLUMNS = frozenset(Job.model_fields) - ASKED - FOUND


def values_of(job: Job) -> dict[str, Any]:
    """The values of a new job's row."""
    asked = job.model_dump(mode="json", include=set(ASKED))
    if job.request_sha256 is None:
        del asked["request_sha256"]  # of most jobs
    columns = {name: getattr(job, name) for name in COLUMNS}
    columns["status"] = job.status.value
    resources = job.resources
    return {
        **columns,
        "vcpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "disk_mb": resources.disk_mb or 0,
        "image_digest": job.image_digest,
        "asked": asked,
        "found": found_of(job),
    }


def found_of(job: Job) -> dict[str, Any]:
    """The value of the column `found`."""
    return job.model_dump(mode="json", include=set(FOUND), exclude_defaults=True)


def job_of(row: Row[Any]) -> Job:
    """The job of a row of the table `jobs`."""
    fields = {name: row._mapping[name] for name in COLUMNS}
    return Job(**fields, **row.asked, **row.found)
