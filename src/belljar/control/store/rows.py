"""Convert jobs to rows and back: the request is in one JSON column, `spec`, the results are in another, `result`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from belljar.model.job import Job

#: Fields of the request, apart from those with a column of their own.
SPEC = frozenset(
    {
        "language",
        "entrypoint",
        "image",
        "image_digest",
        "resources",
        "timeout_seconds",
        "args",
        "env",
        "secrets",
        "mask_secrets",
        "stdin_bytes",
        "egress",
        "artifacts",
        "labels",
        "dependencies",
        "request_sha256",
        "traceparent",
    }
)
#: Fields of the results, apart from those with a column of their own.
RESULT = frozenset(
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
        "secret_versions",
    }
)
#: Fields that are columns of the same name: the rest.
COLUMNS = frozenset(Job.model_fields) - SPEC - RESULT


def values_of(job: Job) -> dict[str, Any]:
    """Return the values of a new job's row."""
    spec = job.model_dump(mode="json", include=set(SPEC))
    for name in ("request_sha256", "secrets", "mask_secrets", "traceparent"):  # most jobs have none
        if getattr(job, name) == Job.model_fields[name].default:
            del spec[name]
    columns = {name: getattr(job, name) for name in COLUMNS}
    columns["status"] = job.status.value
    resources = job.resources
    return {
        **columns,
        "vcpus": resources.vcpus,
        "memory_mb": resources.memory_mb,
        "disk_mb": resources.disk_mb or 0,
        "image_digest": job.image_digest,
        "spec": spec,
        "result": result_of(job),
    }


def result_of(job: Job) -> dict[str, Any]:
    """Return the value of the column `result`."""
    return job.model_dump(mode="json", include=set(RESULT), exclude_defaults=True)


def job_of(row: Row[Any]) -> Job:
    """Return the job of a row of the table `jobs`."""
    fields = {name: row._mapping[name] for name in COLUMNS}
    return Job(**fields, **row.spec, **row.result)
