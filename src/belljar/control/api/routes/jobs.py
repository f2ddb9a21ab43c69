"""/v1/jobs: submit, list, show, cancel and wait for jobs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_options
from belljar.control.api.dependencies import Cursor, KeyDep, Limit, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.services import Services
from belljar.control.store.keys import Key
from belljar.model.errors import InvalidDependencies, LayerBuildError, NotAuthenticated, without_paths
from belljar.model.job import Job
from belljar.model.job_options import JobOptions, JobRequest
from belljar.model.states import Status

router = APIRouter(prefix="/v1", tags=["jobs"])

Wait = Annotated[float, Query(ge=0, le=3600, description="Wait up to this many seconds for the job to end.")]
#: How many jobs are serialized before the event loop may run other tasks.
_JOBS_AT_ONCE = 50
#: Errors whose messages have paths of the script's machine, not of the host.
_SCRIPT_ERRORS = frozenset({"cannot_execute", InvalidDependencies.code, LayerBuildError.code})
_ENDED: dict[int | str, dict[str, Any]] = {200: {"description": "The job has ended."}}


@router.post("/jobs", status_code=202, responses=_ENDED, openapi_extra=body_of(JobRequest))
@audited("job.submit")
async def submit_job(request: Request, services: ServicesDep, key: KeyDep, wait: Wait = 0) -> Response:
    """Queue a job: `script_id`, or `code` and `language`, or `files`; with options."""
    submission = await read_options(request, JobRequest)
    async with services.submitting.slot(key.id):
        job = await services.jobs.submit(key.project, submission)
    del submission
    # Release the memory of the body: waiting may take an hour.
    request.state.body_lease.release()
    if wait:
        job = await _wait(services, key, job.id, wait)
    return json_response(_public(job, key, services), 200 if job.status.terminal else 202)


@router.post("/scripts/{script_id}/run", status_code=202, openapi_extra=body_of(JobOptions, required=False))
@audited("job.submit")
async def run_script(request: Request, script_id: str, services: ServicesDep, key: KeyDep) -> Response:
    """Queue a job that runs this script."""
    options = await read_options(request, JobOptions, required=False)
    values = options.model_dump(exclude_unset=True, exclude={"stdin", "stdin_base64"})
    submission = JobRequest(script_id=script_id, **values)
    submission.set_stdin(options.stdin_bytes())
    async with services.submitting.slot(key.id):
        job = await services.jobs.submit(key.project, submission)
    return json_response({"job_id": job.id, **_public(job, key, services)}, 202)


@router.get("/jobs")
async def list_jobs(
    services: ServicesDep,
    key: KeyDep,
    status: Status | None = None,
    script_id: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[str | None, Query(max_length=400, description="NAME or NAME=VALUE")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """List the project's jobs, newest first. A page of large jobs has fewer than `limit`."""
    jobs, next_cursor = await services.jobs.list(
        key.project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
    )
    page = []
    for job in jobs:
        page.append(_public(job, key, services))
        if len(page) % _JOBS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return json_response({"jobs": page, "next_cursor": next_cursor})


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, services: ServicesDep, key: KeyDep, wait: Wait = 0) -> Response:
    """Return the job; with `wait`, as soon as it has ended."""
    return json_response(_public(await _wait(services, key, job_id, wait), key, services))


@router.post("/jobs/{job_id}/cancel")
@audited("job.cancel")
async def cancel_job(job_id: str, services: ServicesDep, key: KeyDep) -> Response:
    """Cancel a job. A running job ends soon after; an ended job is returned unchanged."""
    return json_response(_public(await services.jobs.cancel(key.project, job_id), key, services))


async def _wait(services: Services, key: Key, job_id: str, seconds: float) -> Job:
    job = await services.jobs.wait(key.project, job_id, seconds, key_id=key.id)
    if services.changes.is_revoked(key.id):
        raise NotAuthenticated("the key was revoked")
    return job


def _public(job: Job, key: Key, services: Services) -> dict[str, Any]:
    """Return the job's public fields; without paths of the host unless the key is an admin key."""
    fields = job.public()
    if not key.admin:
        folder = str(services.settings.data_dir)
        for failure in (fields["error"], *fields["lost_attempts"]):
            if failure is not None and (failure.get("code") not in _SCRIPT_ERRORS or folder in failure["message"]):
                failure["message"] = without_paths(failure["message"])
    return fields
