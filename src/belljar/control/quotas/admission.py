"""Decides whether a project may submit one more job or sandbox, or store more, by its limits and its use."""

from __future__ import annotations

from typing import Any

from belljar.model.errors import QuotaExceeded
from belljar.model.quotas import CountedQuota, QuotaLimits, Use

_MIB = 1024 * 1024
#: What is wrong, and what to do. `{used}` is without the refused job.
_REASONS = {
    CountedQuota.QUEUED_JOBS: "the project has {used} queued jobs; the maximum is {limit}: wait until some start",
    CountedQuota.JOBS_PER_MINUTE: "the project submitted {used} jobs in this minute; the maximum is {limit}: submit "
    "again in {reset} s",
    CountedQuota.JOBS_PER_DAY: "the project submitted {used} jobs today; the maximum is {limit}: submit again after "
    "midnight UTC",
    CountedQuota.VCPU_SECONDS: "the project used {used} vCPU-seconds today; the maximum is {limit}: submit again after "
    "midnight UTC",
    CountedQuota.MEMORY_MB_SECONDS: "the project used {used} MB-seconds of memory today; the maximum is {limit}: "
    "submit again after midnight UTC",
    CountedQuota.STORAGE_MB: "the project stores {used} MiB; the maximum is {limit}: delete scripts, or wait until the "
    "retention period of jobs ends",
    CountedQuota.SANDBOXES: "the project has {used} sandboxes that have not ended; the maximum is {limit}: end some",
    CountedQuota.SANDBOX_VCPUS: "the project's sandboxes have {used} vCPUs, and would have more than {limit} with this "
    "one: end or pause some, or ask for fewer vCPUs",
}
#: Quotas of sandboxes, which limit no job.
_OF_SANDBOXES = (CountedQuota.SANDBOXES, CountedQuota.SANDBOX_VCPUS)
#: Quotas of which the job itself takes one; it exceeds the others when they are used up already.
_TAKES_ONE = (CountedQuota.QUEUED_JOBS, CountedQuota.JOBS_PER_MINUTE, CountedQuota.JOBS_PER_DAY)


def check_submission(limits: QuotaLimits, use: Use) -> None:
    """Raise QuotaExceeded unless the project may submit one more job. `use` is without that job."""
    for quota in _REASONS:
        limit = None if quota in _OF_SANDBOXES else limits.of(quota)
        if limit is not None and use.used[quota] >= limit:
            raise exceeded(quota, limit, use)


def check_stored(limits: QuotaLimits, use: Use, more_bytes: int = 0) -> None:
    """Raise QuotaExceeded if the project, with so many bytes more, stores more than it may."""
    limit = limits.max_storage_mb
    if limit is not None and use.used[CountedQuota.STORAGE_MB] + more_bytes / _MIB > limit:
        raise exceeded(CountedQuota.STORAGE_MB, limit, use)


def check_sandbox(limits: QuotaLimits, *, sandboxes: int, vcpus: int, more_vcpus: int) -> None:
    """Raise QuotaExceeded unless the project may have one more sandbox. The numbers are those without it."""
    if limits.max_sandboxes is not None and sandboxes >= limits.max_sandboxes:
        raise _exceeded(CountedQuota.SANDBOXES, limits.max_sandboxes, sandboxes, None)
    if limits.max_sandbox_vcpus is not None and vcpus + more_vcpus > limits.max_sandbox_vcpus:
        raise _exceeded(CountedQuota.SANDBOX_VCPUS, limits.max_sandbox_vcpus, vcpus, None)


def without_one_job(use: Use) -> Use:
    """Return the use as it was before the job that was just counted."""
    return use.minus(_TAKES_ONE)


def exceeded(quota: CountedQuota, limit: int, use: Use) -> QuotaExceeded:
    """Return the error for a quota that is used up."""
    return _exceeded(quota, limit, use.used[quota], use.resets_in_seconds(quota))


def _exceeded(quota: CountedQuota, limit: int, used: float, reset: int | None) -> QuotaExceeded:
    used = round(used, 1)
    reason = _REASONS[quota].format(used=f"{used:g}" if used < 1e6 else round(used), limit=limit, reset=reset)
    details: dict[str, Any] = {"quota": quota.value, "limit": limit, "used": used}
    if reset is not None:
        details["retry_after"] = reset
    return QuotaExceeded(f"{reason} (quota {quota})", **details)
