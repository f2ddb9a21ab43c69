"""Pages: what the project may use, and has used by day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.quotas.service import ProjectUsage
from belljar.control.store.quotas import DayUsage
from belljar.control.web.shown import count
from belljar.model.quotas import CountedQuota

router = APIRouter(include_in_schema=False)

_RANGES = (7, 30, 90)
#: Each counted quota as the page names it.
LABELS = {
    CountedQuota.RUNNING_JOBS: "Running jobs",
    CountedQuota.QUEUED_JOBS: "Queued jobs",
    CountedQuota.JOBS_PER_MINUTE: "Jobs in this minute",
    CountedQuota.JOBS_PER_DAY: "Jobs today",
    CountedQuota.VCPU_SECONDS: "vCPU seconds today",
    CountedQuota.MEMORY_MB_SECONDS: "Memory today, MB seconds",
    CountedQuota.STORAGE_MB: "Storage, MB",
    CountedQuota.SANDBOXES: "Sandboxes",
    CountedQuota.SANDBOX_VCPUS: "vCPUs of sandboxes",
}
#: The width of one day in a chart, of which the bar takes a part.
_STEP, _BAR = 10, 8
_MB_SECONDS_IN_GB_HOUR = 1024 * 3600


@dataclass(frozen=True, slots=True)
class Bar:
    """One day in a chart; lengths in hundredths of its height."""

    x: int
    width: int
    height: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One figure by day."""

    title: str
    total: str
    width: int
    bars: list[Bar]
    first: str
    last: str


@router.get("/usage", dependencies=[require(Scope.USAGE_READ)])
async def show_usage(page: PagesDep, days: Annotated[int, Query(ge=1, le=400)] = 30) -> Response:
    """Show the quotas of the project and its usage by day."""
    usage = await page.services.quotas.usage(page.identity.project, days)
    found = sorted(usage.days, key=lambda day: day.day)
    charts = [
        _chart("Jobs", found, lambda day: day.jobs),
        _chart("vCPU seconds", found, lambda day: day.vcpu_seconds),
        _chart("Memory, GB hours", found, _gb_hours),
    ]
    rows = [
        {"day": day.day, "jobs": day.jobs, "vcpu_seconds": day.vcpu_seconds, "memory_gb_hours": _gb_hours(day)}
        for day in reversed(found)
    ]
    return await page.show(
        "usage.html",
        quotas=[_quota(usage, quota) for quota in CountedQuota],
        charts=charts,
        rows=rows,
        is_used=any(day.jobs or day.vcpu_seconds for day in found),
        days=days,
        ranges=_RANGES,
    )


def _quota(usage: ProjectUsage, quota: CountedQuota) -> dict[str, Any]:
    limit, used = usage.limits.of(quota), usage.use.used[quota]
    share = 100.0 if limit == 0 else None if limit is None else min(100.0, 100 * used / limit)
    return {
        "label": LABELS[quota],
        "limit": limit,
        "used": used,
        "percent": None if share is None else f"{share:.0f}",
        "resets_in_seconds": usage.use.resets_in_seconds(quota),
    }


def _gb_hours(day: DayUsage) -> float:
    return day.memory_mb_seconds / _MB_SECONDS_IN_GB_HOUR


def _chart(title: str, days: Sequence[DayUsage], value: Callable[[DayUsage], float]) -> Chart:
    values = [value(day) for day in days]
    top = max(values, default=0) or 1
    bars = [
        # What was used at all is seen, however little.
        Bar(number * _STEP + 1, _BAR, round(max(1.5, 100 * each / top), 2) if each else 0, f"{day.day}: {_short(each)}")
        for number, (day, each) in enumerate(zip(days, values, strict=True))
    ]
    return Chart(
        title=title,
        total=_short(sum(values)),
        width=max(1, len(days) * _STEP),
        bars=bars,
        first=str(days[0].day) if days else "",
        last=str(days[-1].day) if days else "",
    )


def _short(value: float) -> str:
    return count(value) if value == int(value) or value >= 100 else f"{value:.2f}"
