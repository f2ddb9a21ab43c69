"""/v1/jobs: submit, look at, list, cancel, wait."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from belljar.control.api.answers import json_answer
from belljar.control.api.bodies import read_options
from belljar.control.api.dependencies import Caller, Cursor, Limit, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.services import Services
from belljar.control.store.keys import Key
from belljar.model.errors import InvalidDependencies, LayerBuildError, NotAuthenticated, without_paths
from belljar.model.job import Job
from belljar.model.job_options import JobOptions, JobRequest
from belljar.model.states import Status

router = APIRouter(prefix="/v1", tags=["jobs"])

Wait = Annotated[float, Query(ge=0, le=3600, description="Wait this many seconds for the job to end.")]
#: How many jobs are made into JSON without letting others run.
_JOBS_AT_ONCE = 50
#: Failures of scripts: the paths in them are those of the script's machine.
_OF_SCRIPTS = frozenset({"cannot_execute", InvalidDependencies.code, LayerBuildError.code})
_ENDED: dict[int | str, dict[str, Any]] = {200: {"description": "The job has ended."}}


@router.post("/jobs", status_code=202, responses=_ENDED, openapi_extra=body_of(JobRequest))
async def submit_job(request: Request, services: ServicesDep, key: Caller, wait: Wait = 0) -> Response:
    """Queue a job: `script_id`, or `code` and `language`, or `files`; and options."""
    submission = await read_options(request, JobRequest)
    async with services.submitting.turn(key.id):
        job = await services.jobs.submit(key.project, submission)
    del submission
    # The body is not needed any more, and waiting may take an hour.
    request.state.body_lease.release()
    if wait:
        job = await _wait(services, key, job.id, wait)
    return json_answer(_shown(job, key, services), 200 if job.status.terminal else 202)


@router.post("/scripts/{script_id}/run", status_code=202, openapi_extra=body_of(JobOptions, required=False))
async def run_script(request: Request, script_id: str, services: ServicesDep, key: Caller) -> Response:
    """Queue a job that runs this script."""
    options = await read_options(request, JobOptions, required=False)
    given = options.model_dump(exclude_unset=True, exclude={"stdin", "stdin_base64"})
    wanted = JobRequest(script_id=script_id, **given)
    wanted.set_stdin(options.stdin_bytes())
    async with services.submitting.turn(key.id):
        job = await services.jobs.submit(key.project, wanted)
    return json_answer({"job_id": job.id, **_shown(job, key, services)}, 202)


@router.get("/jobs")
async def list_jobs(
    services: ServicesDep,
    key: Caller,
    status: Status | None = None,
    script_id: Annotated[str | None, Query(max_length=200)] = None,
    label: Annotated[str | None, Query(max_length=400, description="NAME or NAME=VALUE")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The project's jobs, newest first. A page has fewer than `limit` where they are large."""
    jobs, next_cursor = await services.jobs.list(
        key.project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
    )
    shown = []
    for job in jobs:
        shown.append(_shown(job, key, services))
        if len(shown) % _JOBS_AT_ONCE == 0:
            await asyncio.sleep(0)
    return json_answer({"jobs": shown, "next_cursor": next_cursor})


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, services: ServicesDep, key: Caller, wait: Wait = 0) -> Response:
    """The job as it is, or, with `wait`, as soon as it has ended."""
    return json_answer(_shown(await _wait(services, key, job_id, wait), key, services))


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, services: ServicesDep, key: Caller) -> Response:
    """Stop a job. One that has begun ends a moment later; one that has ended stays as it is."""
    return json_answer(_shown(await services.jobs.cancel(key.project, job_id), key, services))


async def _wait(services: Services, key: Key, job_id: str, seconds: float) -> Job:
    job = await services.jobs.wait(key.project, job_id, seconds, key_id=key.id)
    if services.changes.is_revoked(key.id):
        raise NotAuthenticated("the key was revoked")
    return job


def _shown(job: Job, key: Key, services: Services) -> dict[str, Any]:
    """The job as its caller may see it: where what lies on this host is for its operator."""
    shown = job.public()
    if not key.admin:
        folder = str(services.settings.data_dir)
        for failure in (shown["error"], *shown["lost_attempts"]):
            if failure is not None and (failure.get("code") not in _OF_SCRIPTS or folder in failure["message"]):
                failure["message"] = without_paths(failure["message"])
    return shown
