"""/v1/jobs/{id}/artifacts: the files that a job left behind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.convertors import PathConvertor, register_url_convertor

from belljar.control.api.dependencies import Project, ServicesDep
from belljar.control.api.services import Services
from belljar.control.api.streams import Stream
from belljar.control.jobs.blob_names import artifact_blob
from belljar.model.errors import NotFound

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["jobs"])


@router.get("")
async def list_artifacts(job_id: str, services: ServicesDep, project: Project) -> dict[str, Any]:
    """What the job's `artifacts` globs matched when its script had ended."""
    job = await services.jobs.get(project, job_id)
    return {"artifacts": [artifact.model_dump() for artifact in job.kept_artifacts]}


class _AnyPath(PathConvertor):
    """A path of any characters: Starlette's own ends at a newline, which a guest may put into a name."""

    regex = "(?s:.*)"


register_url_convertor("anypath", _AnyPath())


@router.get("/{path:anypath}", response_class=Stream)
async def get_artifact(job_id: str, path: str, services: ServicesDep, project: Project) -> Stream:
    """One file's bytes. Always a download: what a job wrote is never shown as a page of this server's."""
    job = await services.jobs.get(project, job_id)
    for number, artifact in enumerate(job.kept_artifacts):
        if artifact.path == path:
            name = quote(path.rpartition("/")[2])
            headers = {
                "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
                "Content-Length": str(artifact.size_bytes),
                "X-Content-Type-Options": "nosniff",
            }
            stream = _watched(services, job_id, services.blobs.stream(artifact_blob(job_id, number)))
            return Stream(stream, media_type="application/octet-stream", headers=headers)
    raise NotFound(f"the job kept no artifact {path[:200]!r}; list them with GET /v1/jobs/{job_id}/artifacts")


async def _watched(
    services: Services, job_id: str, stream: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes | str, None]:
    """The stream, known to `Changes` while it is open, so that a key which another process revokes ends it."""
    with services.changes.watching(job_id, of_log=False):
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                yield chunk
