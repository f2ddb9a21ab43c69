"""/v1/jobs: submit, list, show, cancel and wait for jobs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.authentication import end_error
from belljar.control.api.bodies import read_options
from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.rate_limit_headers import rate_limit_headers
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.model.errors import InvalidDependencies, LayerBuildError, without_paths
from belljar.model.job import Job
from belljar.model.job_options import JobOptions, JobRequest
from belljar.model.states import Status
from belljar.model.usage_series import UsageSeries

router = APIRouter(prefix="/v1", tags=["jobs"])

Wait = Annotated[float, Query(ge=0, le=3600, description="Wait up to this many seconds for the job to end.")]
#: How many jobs are serialized before the event loop may run other tasks.
_JOBS_AT_ONCE = 50
#: Errors whose messages have paths of the script's machine, not of the host.
_SCRIPT_ERRORS = frozenset({"cannot_execute", InvalidDependencies.code, LayerBuildError.code})
_ENDED: dict[int | str, dict[str, Any]] = {200: {"description": "The job has ended."}}


@router.post(
    "/jobs",
    status_code=202,
    responses=_ENDED,
    openapi_extra=body_of(JobRequest),
    dependencies=[require(Scope.JOBS_RUN)],
)
@audited("job.submit")
async def submit_job(request: Request, services: ServicesDep, identity: IdentityDep, wait: Wait = 0) -> Response:
    """Queue a job: `script_id`, or `code` and `language`, or `files`; with options."""
    submission = await read_options(request, JobRequest)
    async with services.submitting.slot(identity.id):
        job = await services.jobs.submit(identity.project, submission)
    del submission
    # Release the memory of the body: waiting may take an hour.
    request.state.body_lease.release()
    if wait:
        job = await _wait(services, identity, job.id, wait)
    response = json_response(public_fields(job, identity, services), 200 if job.status.terminal else 202)
    return await _with_rate_limits(response, identity, services)


@router.post(
    "/scripts/{script_id}/run",
    status_code=202,
    openapi_extra=body_of(JobOptions, required=False),
    dependencies=[require(Scope.JOBS_RUN)],
)
@audited("job.submit")
async def run_script(request: Request, script_id: str, services: ServicesDep, identity: IdentityDep) -> Response:
    """Queue a job that runs this script."""
    options = await read_options(request, JobOptions, required=False)
    values = options.model_dump(exclude_unset=True, exclude={"stdin", "stdin_base64"})
    submission = JobRequest(script_id=script_id, **values)
    submission.set_stdin(options.stdin_bytes())
    async with services.submitting.slot(identity.id):
        job = await services.jobs.submit(identity.project, submission)
    response = json_response({"job_id": job.id, **public_fields(job, identity, services)}, 202)
    return await _with_rate_limits(response, identity, services)


@router.get("/jobs", dependencies=[require(Scope.JOBS_READ)])
async def list_jobs(
    services: ServicesDep,
    identity: IdentityDep,
    status: Status | None = None,
    script_id: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[str | None, Query(max_length=400, description="NAME or NAME=VALUE")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List the project's jobs, newest first. A page of large jobs has fewer than `limit`."""
    jobs, next_cursor = await services.jobs.list(
        identity.project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
    )
    page = []
    for job in jobs:
        page.append(public_fields(job, identity, services))
        if len(page) % _JOBS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return json_response({"jobs": page, "next_cursor": next_cursor})


@router.get("/jobs/{job_id}", dependencies=[require(Scope.JOBS_READ)])
async def get_job(job_id: str, services: ServicesDep, identity: IdentityDep, wait: Wait = 0) -> Response:
    """Return the job; with `wait`, as soon as it has ended. `waiting_for` is the quota that keeps it queued, if any."""
    job = await _wait(services, identity, job_id, wait)
    fields = public_fields(job, identity, services)
    if job.status is Status.QUEUED and (quota := await services.quotas.waiting_for(job.project)) is not None:
        fields["waiting_for"] = quota
    return json_response(fields)


@router.get("/jobs/{job_id}/metrics", dependencies=[require(Scope.JOBS_READ)])
async def get_job_metrics(job_id: str, services: ServicesDep, identity: IdentityDep) -> Response:
    """Return what the machine of the job's last attempt used, as its guest counts it: arrays with a point each second,
    at most 256. A job of less than a second has none; of one that runs, they are some seconds old."""
    job = await services.jobs.get(identity.project, job_id)
    stored = await services.usage_series.get(job.id)
    series = stored.series if stored is not None and stored.number == job.attempt else _no_usage(job)
    return json_response({"job_id": job.id, "attempt": job.attempt, **series.model_dump(mode="json")})


@router.post("/jobs/{job_id}/cancel", dependencies=[require(Scope.JOBS_RUN)])
@audited("job.cancel")
async def cancel_job(job_id: str, services: ServicesDep, identity: IdentityDep) -> Response:
    """Cancel a job. A running job ends soon after; an ended job is returned unchanged."""
    return json_response(public_fields(await services.jobs.cancel(identity.project, job_id), identity, services))


def _no_usage(job: Job) -> UsageSeries:
    resources = job.resources
    return UsageSeries(vcpus=resources.vcpus, memory_limit_bytes=resources.memory_mb << 20)


async def _with_rate_limits(response: Response, identity: Identity, services: Services) -> Response:
    """Return the response of a submission with the headers RateLimit-Policy and RateLimit, if there are limits."""
    response.headers.update(rate_limit_headers(await services.quotas.rate_limits(identity.project)))
    return response


async def _wait(services: Services, identity: Identity, job_id: str, seconds: float) -> Job:
    def ended() -> bool:
        return end_error(identity, services.changes) is not None

    if identity.expires_at is not None:
        seconds = min(seconds, max(0.0, (identity.expires_at - datetime.now(UTC)).total_seconds()))
    job = await services.jobs.wait(identity.project, job_id, seconds, ended=ended)
    if (error := end_error(identity, services.changes)) is not None:
        raise error
    return job


def public_fields(job: Job, identity: Identity, services: Services) -> dict[str, Any]:
    """Return the job's public fields; without paths of the host unless the key is an admin key."""
    fields = job.public()
    if not identity.is_operator:
        folder = str(services.settings.data_dir)
        for failure in (fields["error"], *fields["lost_attempts"]):
            if failure is not None and (failure.get("code") not in _SCRIPT_ERRORS or folder in failure["message"]):
                failure["message"] = without_paths(failure["message"])
    return fields
