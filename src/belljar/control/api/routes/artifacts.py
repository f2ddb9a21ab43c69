"""/v1/jobs/{id}/artifacts: the files that a job kept."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.convertors import PathConvertor, register_url_convertor

from belljar.control.api.dependencies import ProjectDep, ServicesDep
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.api.streams import Stream
from belljar.control.jobs.blob_names import artifact_blob
from belljar.control.projects.scopes import Scope
from belljar.model.errors import NotFound

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["jobs"])


@router.get("", dependencies=[require(Scope.JOBS_READ)])
async def list_artifacts(job_id: str, services: ServicesDep, project: ProjectDep) -> dict[str, Any]:
    """List the files that the job's `artifacts` globs matched at its end."""
    job = await services.jobs.get(project, job_id)
    return {"artifacts": [artifact.model_dump() for artifact in job.kept_artifacts]}


class _AnyPath(PathConvertor):
    """A path of any characters: Starlette's own stops at a newline, which a guest may use in a name."""

    regex = "(?s:.*)"


register_url_convertor("anypath", _AnyPath())


@router.get("/{path:anypath}", response_class=Stream, dependencies=[require(Scope.JOBS_READ)])
async def get_artifact(job_id: str, path: str, services: ServicesDep, project: ProjectDep) -> Stream:
    """Download one file. Browsers never display it as a page of this server."""
    job = await services.jobs.get(project, job_id)
    for number, artifact in enumerate(job.kept_artifacts):
        if artifact.path == path:
            name = quote(path.rpartition("/")[2])
            headers = {
                "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
                "Content-Length": str(artifact.size_bytes),
                "X-Content-Type-Options": "nosniff",
            }
            stream = _while_watching(services, job_id, services.blobs.stream(artifact_blob(job_id, number)))
            return Stream(stream, media_type="application/octet-stream", headers=headers)
    raise NotFound(f"the job kept no artifact {path[:200]!r}; list them with GET /v1/jobs/{job_id}/artifacts")


async def _while_watching(
    services: Services, job_id: str, stream: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes | str, None]:
    """Yield the stream while `Changes` watches the job, so that a key that another process revokes ends it."""
    with services.changes.watching(job_id, of_log=False):
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                yield chunk
