"""/jobs: the list of jobs, and the page of one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.responses import RedirectResponse, Response

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import Cursor, IdentityDep, ServicesDep
from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.routes.jobs import public_fields
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.control.store.job_listing import JobFilter
from belljar.control.web.waterfall import waterfall
from belljar.model.errors import NotFound
from belljar.model.ids import is_job_id
from belljar.model.job import Job
from belljar.model.states import Status

router = APIRouter(include_in_schema=False)

_SINCE = {
    "1h": ("the last hour", timedelta(hours=1)),
    "24h": ("the last 24 hours", timedelta(days=1)),
    "7d": ("the last 7 days", timedelta(days=7)),
    "30d": ("the last 30 days", timedelta(days=30)),
}
_PAGE = 50
Text = Annotated[str, Query(max_length=400)]


@router.get("/jobs", dependencies=[require(Scope.JOBS_READ)])
async def show_jobs(
    pages: PagesDep,
    services: ServicesDep,
    identity: IdentityDep,
    status: Text = "",
    language: Text = "",
    label: Text = "",
    since: Text = "",
    q: Text = "",
    cursor: Cursor = None,
) -> Response:
    """List the project's jobs. A whole id as the text to search for leads to its job."""
    given = {"q": q.strip(), "status": status, "language": language, "label": label.strip(), "since": since}
    if is_job_id(given["q"]) and not pages.is_part:
        return RedirectResponse(f"/jobs/{given['q']}", 303)
    page = await services.job_listing.page(identity.project, _filter(given), limit=_PAGE, cursor=cursor)
    values: dict[str, Any] = {
        "page": page,
        "given": given,
        "is_filtered": any(given.values()),
        "here": _address(given),
        "is_first": cursor is None,
        "older": None if page.next_cursor is None else _address({**given, "cursor": page.next_cursor}),
        "statuses": [each.value for each in Status],
        "languages": sorted(each.name for each in services.images.languages()),
        "times": {name: title for name, (title, _) in _SINCE.items()},
    }
    return pages.part("jobs_part.html", **values) if pages.is_part else await pages.show("jobs.html", **values)


@router.get("/jobs/{job_id}", dependencies=[require(Scope.JOBS_READ)])
async def show_job(job_id: str, pages: PagesDep, services: ServicesDep, identity: IdentityDep) -> Response:
    """Show a job; a page that is open gets the parts that change."""
    job = await services.jobs.get(identity.project, job_id)
    values = await _job_values(services, identity, job)
    return pages.part("job_part.html", **values) if pages.is_part else await pages.show("job.html", **values)


@router.post("/jobs/{job_id}/cancel", dependencies=[require(Scope.JOBS_RUN)])
@audited("job.cancel")
async def cancel_job(job_id: str, pages: PagesDep, services: ServicesDep, identity: IdentityDep) -> Response:
    """Cancel a job."""
    await pages.form()
    await services.jobs.cancel(identity.project, job_id)
    return RedirectResponse(f"/jobs/{job_id}", 303)


async def _job_values(services: Services, identity: Identity, job: Job) -> dict[str, Any]:
    try:
        script = await services.scripts.get(identity.project, job.script_id)
    except NotFound:  # deleted
        script = None
    return {
        "job": job,
        "name": script.name if script is not None else job.entrypoint,
        "script": script,
        "bars": waterfall(job.timings),
        "reason": await services.overview.reason(job.id) if job.status is Status.QUEUED else None,
        # Messages about the host are for its operator.
        "public": public_fields(job, identity, services),
    }


def _filter(given: dict[str, str]) -> JobFilter:
    """Return the filter of an address; what it has no meaning for is left out."""
    since = _SINCE.get(given["since"])
    status = given["status"]
    return JobFilter(
        status=Status(status) if status in [each.value for each in Status] else None,
        language=given["language"] or None,
        label=given["label"] or None,
        since=datetime.now(UTC) - since[1] if since is not None else None,
        text=given["q"] or None,
    )


def _address(given: dict[str, str]) -> str:
    query = urlencode({name: value for name, value in given.items() if value})
    return f"/jobs?{query}" if query else "/jobs"
