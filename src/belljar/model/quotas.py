"""Quotas: what one project may have, do and use. Values only; `belljar.control.quotas` applies them.

A quota is set for one project (`ProjectQuotas`) or comes from the settings; `QuotaLimits` are the limits that hold.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, field_validator

from belljar.model.egress import MAX_ENTRIES, MAX_ENTRY_CHARACTERS, parse_egress
from belljar.model.value import Value

UNLIMITED = "unlimited"
#: A number above every limit, for comparisons without a case for "no limit". Fits into 64 bits with a sign.
UNLIMITED_VALUE = 2**62
MAX_LIMIT = 10**15
_MAX_DAYS = 36_500

Count = Annotated[int, Field(ge=0, le=MAX_LIMIT, strict=True)]
Size = Annotated[int, Field(ge=1, le=MAX_LIMIT, strict=True)]
Limit = Count | Literal["unlimited"] | None


class ProjectQuotas(Value):
    """The quotas of one project. `null`: the default of the settings; `"unlimited"`: no limit."""

    max_running_jobs: Limit = None
    """Jobs that run at once; more stay queued."""
    max_queued_jobs: Limit = None
    """Jobs that are queued; a further submission is refused."""
    max_jobs_per_minute: Limit = None
    """Jobs submitted in one minute of the clock."""
    max_jobs_per_day: Limit = None
    """Jobs submitted on one day (UTC)."""
    max_vcpu_seconds_per_day: Limit = None
    """vCPUs times seconds of all machines on one day (UTC); when used up, no job and no sandbox starts until
    midnight."""
    max_memory_mb_seconds_per_day: Limit = None
    """Memory in MB times seconds of all machines on one day (UTC); when used up, no job and no sandbox starts until
    midnight."""
    max_storage_mb: Limit = None
    """Scripts, logs and artifacts together, in MiB."""
    max_sandboxes: Limit = None
    """Sandboxes that have not ended, paused ones included, within the setting `max_sandboxes_per_project`."""
    max_sandbox_vcpus: Limit = None
    """vCPUs of its sandboxes together, without ended and paused ones."""
    max_vcpus: Size | None = None
    """vCPUs of one job, within the setting of this name."""
    max_memory_mb: Size | None = None
    """Memory of one job, within the setting of this name."""
    max_disk_mb: Count | None = None
    """Scratch disk of one job, within the setting of this name."""
    max_timeout_seconds: Annotated[float, Field(gt=0, le=MAX_LIMIT, allow_inf_nan=False)] | None = None
    """Timeout of one job, within the setting of this name."""
    max_egress: Annotated[str, Field(max_length=MAX_ENTRIES * MAX_ENTRY_CHARACTERS)] | None = None
    """Widest egress policy: `none`, `packages`, `open`, or destinations separated by commas."""
    keep_jobs_days: Annotated[float, Field(gt=0, le=_MAX_DAYS, allow_inf_nan=False)] | None = None
    """Retention of ended jobs in days, where it is shorter than that of the settings."""

    @field_validator("max_egress")
    @classmethod
    def _normalized(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parsed = parse_egress(value).value
        return parsed if isinstance(parsed, str) else ",".join(parsed)


class CountedQuota(StrEnum):
    """The quotas whose use is counted."""

    RUNNING_JOBS = "max_running_jobs"
    QUEUED_JOBS = "max_queued_jobs"
    JOBS_PER_MINUTE = "max_jobs_per_minute"
    JOBS_PER_DAY = "max_jobs_per_day"
    VCPU_SECONDS = "max_vcpu_seconds_per_day"
    MEMORY_MB_SECONDS = "max_memory_mb_seconds_per_day"
    STORAGE_MB = "max_storage_mb"
    SANDBOXES = "max_sandboxes"
    SANDBOX_VCPUS = "max_sandbox_vcpus"


#: The window of each quota that counts in a time, in seconds.
WINDOW_SECONDS = {
    CountedQuota.JOBS_PER_MINUTE: 60,
    CountedQuota.JOBS_PER_DAY: 86_400,
    CountedQuota.VCPU_SECONDS: 86_400,
    CountedQuota.MEMORY_MB_SECONDS: 86_400,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaLimits:
    """The limits that hold for one project; None: no limit but those of the settings for every job."""

    max_running_jobs: int | None = None
    max_queued_jobs: int | None = None
    max_jobs_per_minute: int | None = None
    max_jobs_per_day: int | None = None
    max_vcpu_seconds_per_day: int | None = None
    max_memory_mb_seconds_per_day: int | None = None
    max_storage_mb: int | None = None
    max_sandboxes: int | None = None
    max_sandbox_vcpus: int | None = None
    max_vcpus: int | None = None
    max_memory_mb: int | None = None
    max_disk_mb: int | None = None
    max_timeout_seconds: float | None = None
    max_egress: str | None = None
    keep_jobs_days: float | None = None

    def of(self, quota: CountedQuota) -> int | None:
        """Return the limit of a counted quota."""
        limit: int | None = getattr(self, quota.value)
        return limit

    @property
    def counts(self) -> bool:
        """Return whether any counted quota has a limit."""
        return any(self.of(quota) is not None for quota in CountedQuota)


NO_LIMITS = QuotaLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a project has used of each counted quota, by the database's clock, and when windows end."""

    used: dict[CountedQuota, float]
    at: datetime
    #: Seconds until the current minute and day end.
    minute_left_seconds: int
    day_left_seconds: int

    def resets_in_seconds(self, quota: CountedQuota) -> int | None:
        """Return in how many seconds the use begins again at zero; None for a quota without a window."""
        if quota not in WINDOW_SECONDS:
            return None
        return self.minute_left_seconds if quota is CountedQuota.JOBS_PER_MINUTE else self.day_left_seconds

    def minus(self, quotas: Collection[CountedQuota]) -> Use:
        """Return the use with one less of each of these."""
        return replace(self, used={quota: used - (quota in quotas) for quota, used in self.used.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimit:
    """A quota in a window, what is left of it, and in how many seconds the window ends."""

    quota: CountedQuota
    limit: int
    left: int
    reset_seconds: int
