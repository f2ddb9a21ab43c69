"""/v1/jobs: submit, look at, list, cancel, wait."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from belljar.api.asked import Asked, Cursor, Limit, Project
from belljar.jobs.model import JobOptions, JobRequest
from belljar.jobs.states import Status

router = APIRouter(prefix="/v1", tags=["jobs"])

Wait = Annotated[float, Query(ge=0, le=3600, description="Wait this many seconds for the job to end.")]


@router.post("/jobs", status_code=202, responses={200: {"description": "The job has ended."}})
async def submit_job(
    request: JobRequest, response: Response, services: Asked, project: Project, wait: Wait = 0
) -> dict[str, Any]:
    """Queue a job: `script_id`, or `code` and `language`, or `files`; and options."""
    job = await services.jobs.submit(project, request)
    if wait:
        job = await services.jobs.wait(project, job.id, wait)
    if job.status.terminal:
        response.status_code = 200
    return job.public()


@router.post("/scripts/{script_id}/run", status_code=202)
async def run_script(
    script_id: str, services: Asked, project: Project, options: JobOptions | None = None
) -> dict[str, Any]:
    """Queue a job that runs this script."""
    given = options.model_dump(exclude_unset=True) if options is not None else {}
    job = await services.jobs.submit(project, JobRequest(script_id=script_id, **given))
    return {"job_id": job.id, **job.public()}


@router.get("/jobs")
async def list_jobs(
    services: Asked,
    project: Project,
    status: Status | None = None,
    script_id: str | None = None,
    label: Annotated[str | None, Query(max_length=400, description="NAME or NAME=VALUE")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """The project's jobs, newest first."""
    jobs, next_cursor = await services.jobs.list(
        project, status=status, script_id=script_id, label=label, limit=limit, cursor=cursor
    )
    return {"jobs": [job.public() for job in jobs], "next_cursor": next_cursor}


@router.get("/jobs/{job_id}")
async def get_job(job_id: str, services: Asked, project: Project, wait: Wait = 0) -> dict[str, Any]:
    """The job as it is, or, with `wait`, as soon as it has ended."""
    return (await services.jobs.wait(project, job_id, wait)).public()


@router.post("/jobs/{job_id}/cancel")
async def cancel_job(job_id: str, services: Asked, project: Project) -> dict[str, Any]:
    """Stop a job. One that has begun ends a moment later; one that has ended stays as it is."""
    return (await services.jobs.cancel(project, job_id)).public()
