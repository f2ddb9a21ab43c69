"""The limits of each project (its own quotas over the defaults of the settings), and what it has used of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from belljar.control.quotas.admission import check_stored, check_submission
from belljar.control.store.quotas import HOLDING_QUOTAS, DayUsage, SqlQuotas
from belljar.model.errors import QuotaExceeded
from belljar.model.quotas import (
    UNLIMITED,
    UNLIMITED_VALUE,
    CountedQuota,
    ProjectQuotas,
    QuotaLimits,
    RateLimit,
    Use,
)
from belljar.settings.quotas import QuotaSettings
from belljar.system.counters import increment

#: How long the limits of a project are cached: a change by another process holds for submissions after this time.
CACHE_SECONDS = 0.5
_MAX_CACHED = 10_000
_RATES = (CountedQuota.JOBS_PER_MINUTE, CountedQuota.JOBS_PER_DAY)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProjectUsage:
    """The limits of a project, what it has used of them, and what it used on the last days."""

    project: str
    limits: QuotaLimits
    use: Use
    days: list[DayUsage]


def default_limits(settings: QuotaSettings) -> QuotaLimits:
    """Return the limits of a project without quotas of its own."""
    return QuotaLimits(**{quota.value: getattr(settings, f"quota_{quota.value}") for quota in CountedQuota})


def limits_of(quotas: ProjectQuotas, defaults: QuotaLimits) -> QuotaLimits:
    """Return the limits that hold for a project with these quotas."""
    values: dict[str, Any] = {}
    for name, value in quotas:
        values[name] = getattr(defaults, name) if value is None else None if value == UNLIMITED else value
    return QuotaLimits(**values)


class QuotaService:
    """The operations of the API on quotas and usage."""

    def __init__(self, store: SqlQuotas, settings: QuotaSettings) -> None:
        self._store = store
        #: The limits of projects without quotas of their own.
        self.defaults = default_limits(settings)
        self._cache: dict[str, tuple[QuotaLimits, float]] = {}

    async def quotas(self, project: str) -> ProjectQuotas:
        """Return the quotas that were set for the project."""
        return await self._store.get(project)

    async def set(self, project: str, quotas: ProjectQuotas) -> None:
        """Replace the quotas of the project. Raises NotFound, ProjectConflict."""
        try:
            await self._store.set(project, quotas)
        finally:
            self._cache.pop(project, None)

    def public(self, project: str, quotas: ProjectQuotas) -> dict[str, Any]:
        """Return the quotas of a project and the limits that hold, as the API and the command line show them."""
        limits = asdict(limits_of(quotas, self.defaults))
        return {"project": project, "quotas": quotas.model_dump(), "limits": limits}

    async def change(self, project: str, changes: ProjectQuotas) -> ProjectQuotas:
        """Change the quotas of the project that `changes` was made with, and return all.

        Raises NotFound, ProjectConflict.
        """
        try:
            return await self._store.change(project, changes.model_dump(exclude_unset=True))
        finally:
            self._cache.pop(project, None)

    async def limits(self, project: str) -> QuotaLimits:
        """Return the limits that hold for the project."""
        cached = self._cache.get(project)
        if cached is not None and time.monotonic() < cached[1]:
            return cached[0]
        read_at = time.monotonic()
        limits = limits_of(await self._store.get(project), self.defaults)
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[project] = limits, read_at + CACHE_SECONDS
        return limits

    async def check_submission(self, project: str) -> QuotaLimits:
        """Return the limits of a project that may submit a job now. Raises QuotaExceeded.

        Storing the job checks again, in the transaction that counts it: here a request is refused before it costs much.
        """
        limits = await self.limits(project)
        if limits.counts:
            use = await self._store.use(project)
            with counting_refusals():
                check_submission(limits, use)
        return limits

    async def check_storage(self, project: str, more_bytes: int = 0) -> QuotaLimits:
        """Return the limits of a project that may store so many bytes more. Raises QuotaExceeded."""
        limits = await self.limits(project)
        if limits.max_storage_mb is not None:
            use = await self._store.use(project)
            with counting_refusals():
                check_stored(limits, use, more_bytes)
        return limits

    async def usage(self, project: str, days: int) -> ProjectUsage:
        """Return the limits of the project, its use of them, and what it used on the last days."""
        limits = limits_of(await self._store.get(project), self.defaults)
        use = await self._store.use(project)
        return ProjectUsage(project=project, limits=limits, use=use, days=await self._store.days(project, days))

    async def waiting_for(self, project: str) -> dict[str, Any] | None:
        """Return the quota that keeps the project's queued jobs from starting, with limit and use; None without one."""
        limits = await self.limits(project)
        if all(limits.of(quota) is None for quota in HOLDING_QUOTAS):
            return None
        use = await self._store.use(project)
        for quota in HOLDING_QUOTAS:
            limit = limits.of(quota)
            if limit is not None and use.used[quota] >= limit:
                return {"quota": quota.value, "limit": limit, "used": use.used[quota]}
        return None

    async def rate_limits(self, project: str) -> list[RateLimit]:
        """Return the state of each quota of submissions in a time that has a limit."""
        limits = await self.limits(project)
        if all(limits.of(quota) is None for quota in _RATES):
            return []
        use = await self._store.use(project)
        found = []
        for quota in _RATES:
            limit, reset = limits.of(quota), use.resets_in_seconds(quota)
            if limit is not None and reset is not None:
                left = max(0, limit - int(use.used[quota]))
                found.append(RateLimit(quota=quota, limit=limit, left=left, reset_seconds=reset))
        return found

    async def projects_at_limit(self) -> tuple[int, dict[CountedQuota, int]]:
        """Return how many projects have queued jobs, and how many of them wait for each quota."""
        defaults = {quota.value: self.defaults.of(quota) for quota in HOLDING_QUOTAS}
        return await self._store.at_limit(
            {name: UNLIMITED_VALUE if limit is None else limit for name, limit in defaults.items()}
        )


@contextmanager
def counting_refusals() -> Iterator[None]:
    """Count a QuotaExceeded that leaves the block, by its quota."""
    try:
        yield
    except QuotaExceeded as error:
        increment("belljar_quota_refusals", quota=str(error.details["quota"]))
        raise
