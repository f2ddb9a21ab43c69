# ruff: noqa: S608 (statements of constants)
"""Which job a worker claims next: first the project, then the project's first job.

Of the projects that may start a job, the one with the fewest vCPUs on this worker is next; among equals, the one that
has waited longest there. A project that has waited for `TURN_SECONDS` without a claim or an end on the worker counts as
if it had one vCPU less, so none waits for ever. Inside a project: priority, then age.

Whether a project starves does not depend on what it has on other workers: a stream of its jobs elsewhere keeps none
that only this worker can run behind those of others.

The statements are text: building and hashing them anew for each claim took longer than running them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from sqlalchemy import TextClause, TextualSelect, bindparam, text

from belljar.control.store.counting import DAY_US, NOW
from belljar.control.store.schema import jobs
from belljar.model.quotas import UNLIMITED_VALUE, QuotaLimits
from belljar.model.resources import NodeLimits

#: How long a project waits on a worker for each vCPU that it has there more than others.
TURN_SECONDS = 600.0

# The projects are read in their order, and only until one of them has a job: SQLite keeps the order of a subquery that
# has a limit. Each project's jobs are read from its part of the index ix_jobs_queue, in that order.
_RANKED = f"""
SELECT c.project, c.held_jobs
FROM project_counters AS c
LEFT JOIN node_counters AS n ON n.worker = :worker AND n.project = c.project
WHERE c.queued_jobs > 0
ORDER BY coalesce(n.held_vcpus, 0) * {int(TURN_SECONDS * 1_000_000)} + max(c.waiting_since, coalesce(n.changed_at, 0)),
    c.project
LIMIT -1
"""
#: What the project of a row `{0}` needs to start a job, with its quotas `q` and its use of today `u`.
_MAY_START = """
    p.suspended_at IS NULL
    AND {0}.held_jobs < coalesce(q.max_running_jobs, :max_running_jobs)
    AND coalesce(u.vcpu_ms, 0) / 1000 < coalesce(q.max_vcpu_seconds_per_day, :max_vcpu_seconds_per_day)
    AND coalesce(u.memory_mb_ms, 0) / 1000 < coalesce(q.max_memory_mb_seconds_per_day, :max_memory_mb_seconds_per_day)
"""
_QUOTAS_AND_USE = f"""
LEFT JOIN project_quotas AS q ON q.project = {{0}}.project
LEFT JOIN project_usage AS u ON u.project = {{0}}.project AND u.day = {NOW} / {DAY_US}
LEFT JOIN projects AS p ON p.name = {{0}}.project
"""
_COLUMNS = ", ".join(column.name for column in jobs.c)
_CLAIMED = f"""
UPDATE jobs SET status = 'starting', worker = :worker, incarnation = :incarnation, attempt = attempt + 1,
    lease_until = {NOW} + :lease_us, metered_until = {NOW}, started_at = NULL
"""
_FITS = "vcpus <= :free_vcpus AND memory_mb <= :free_memory_mb AND disk_mb <= :free_disk_mb"


def find_statement(images: Collection[str] | None) -> TextClause:
    """Return the statement that finds the id of the next job, if it fits now; it takes `parameters`."""
    return _find(images is not None)


def claim_next_statement(images: Collection[str] | None) -> TextualSelect:
    """Return the statement that claims the next job, if it fits now, and returns its row; it takes `parameters`."""
    return _claim_next(images is not None)


def parameters(
    worker: str,
    incarnation: str,
    lease_us: int,
    free: NodeLimits,
    limits: NodeLimits,
    images: Collection[str] | None,
    defaults: QuotaLimits,
) -> dict[str, Any]:
    """Return the values of the statements.

    `free` are the worker's free resources, `limits` those when nothing runs, `images` the digests of its images (None:
    all), `defaults` the limits of projects without quotas of their own.
    """
    values: dict[str, Any] = {
        "worker": worker,
        "incarnation": incarnation,
        "lease_us": lease_us,
        "free_vcpus": free.vcpus,
        "free_memory_mb": free.memory_mb,
        "free_disk_mb": _number(free.disk_mb),
        "vcpus": limits.vcpus,
        "memory_mb": limits.memory_mb,
        "disk_mb": _number(limits.disk_mb),
        "max_running_jobs": _number(defaults.max_running_jobs),
        "max_vcpu_seconds_per_day": _number(defaults.max_vcpu_seconds_per_day),
        "max_memory_mb_seconds_per_day": _number(defaults.max_memory_mb_seconds_per_day),
    }
    return values if images is None else values | {"images": sorted(images)}


def _number(limit: int | None) -> int:
    return UNLIMITED_VALUE if limit is None else limit


def _first(of_images: bool) -> str:
    """Return the query for the id of the job that is next, whether it fits now or not.

    Jobs that can never run on the worker are passed over, as are projects that may not start one now.
    """
    image = "AND (j.image_digest IS NULL OR j.image_digest IN :images)" if of_images else ""
    return f"""
    SELECT first.id FROM ({_RANKED}) AS r
    {_QUOTAS_AND_USE.format("r")}
    JOIN jobs AS first ON first.id = (
        SELECT j.id FROM jobs AS j
        WHERE j.project = r.project AND j.status = 'queued'
            AND j.vcpus <= :vcpus AND j.memory_mb <= :memory_mb AND j.disk_mb <= :disk_mb {image}
        ORDER BY j.priority DESC, j.id LIMIT 1
    )
    WHERE {_MAY_START.format("r")}
    LIMIT 1
    """


@functools.cache
def _find(of_images: bool) -> TextClause:
    return _bound(f"SELECT id FROM jobs WHERE id = ({_first(of_images)}) AND {_FITS}", of_images)


@functools.cache
def _claim_next(of_images: bool) -> TextualSelect:
    query = f"{_CLAIMED} WHERE id = ({_first(of_images)}) AND status = 'queued' AND {_FITS} RETURNING {_COLUMNS}"
    return _bound(query, of_images).columns(*jobs.c)


#: Claims the job `id`, which was found before, if it still may be.
CLAIM_FOUND = text(
    f"""{_CLAIMED} WHERE id = :id AND status = 'queued' AND EXISTS (
        SELECT 1 FROM project_counters AS c {_QUOTAS_AND_USE.format("c")}
        WHERE c.project = jobs.project AND {_MAY_START.format("c")}
    ) RETURNING {_COLUMNS}"""
).columns(*jobs.c)


def _bound(query: str, of_images: bool) -> TextClause:
    statement = text(query)
    return statement.bindparams(bindparam("images", expanding=True)) if of_images else statement
