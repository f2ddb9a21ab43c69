"""/v1/scripts: upload, list, show and delete scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ProjectDep, ServicesDep
from belljar.control.api.forms import is_form, received_form
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.model.errors import InvalidRequest

router = APIRouter(prefix="/v1/scripts", tags=["scripts"])

_CHUNK_BYTES = 256 * 1024
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["script"],
                    "properties": {
                        "script": {
                            "type": "string",
                            "format": "binary",
                            "description": "One file, or a .zip, .tar.gz or .tar.xz with an entrypoint.",
                        },
                        "language": {"type": "string", "description": "Default: by the file's extension or `#!` line."},
                        "entrypoint": {"type": "string", "description": "Path of the file to run, in an archive."},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, openapi_extra=_UPLOAD, dependencies=[require(Scope.SCRIPTS_WRITE)])
@audited("script.upload")
async def upload_script(request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Upload a script: a file or an archive. The same content gives the same `script_id`."""
    services.disk.require()  # before the body is received
    if not is_form(request.headers.get("content-type", "")):
        raise InvalidRequest("the body must be multipart/form-data; send it with curl -F script=@FILE")
    async with received_form(request) as form:
        unknown = sorted(set(form) - {"script", "language", "entrypoint"})
        if unknown:
            raise InvalidRequest(f"unknown form field {unknown[0][:64]!r}; the fields are script, language, entrypoint")
        part, language, entrypoint = form.get("script"), form.get("language"), form.get("entrypoint")
        if not isinstance(part, UploadFile):
            raise InvalidRequest("the form field script has no file; send it with curl -F script=@FILE")
        if isinstance(language, UploadFile) or isinstance(entrypoint, UploadFile):
            raise InvalidRequest("language and entrypoint must be plain fields, not files")
        async with services.uploading.slot(identity.id), services.submitting.slot(identity.id):
            script = await services.scripts.upload(
                identity.project,
                _chunks(part),
                part.filename or "",
                language=language or None,
                entrypoint=entrypoint or None,
            )
    return script.public()


async def _chunks(part: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await part.read(_CHUNK_BYTES):
        yield chunk


@router.get("", dependencies=[require(Scope.SCRIPTS_READ)])
async def list_scripts(
    services: ServicesDep, project: ProjectDep, limit: Limit = 50, cursor: Cursor = None
) -> dict[str, Any]:
    """List the project's scripts, newest first."""
    scripts, next_cursor = await services.scripts.list(project, limit=limit, cursor=cursor)
    return {"scripts": [script.public() for script in scripts], "next_cursor": next_cursor}


@router.get("/{script_id}", dependencies=[require(Scope.SCRIPTS_READ)])
async def get_script(script_id: str, services: ServicesDep, project: ProjectDep) -> dict[str, Any]:
    """Return the script's record."""
    return (await services.scripts.get(project, script_id)).public()


@router.delete("/{script_id}", status_code=204, dependencies=[require(Scope.SCRIPTS_WRITE)])
@audited("script.delete")
async def delete_script(script_id: str, services: ServicesDep, project: ProjectDep) -> Response:
    """Delete a script. Queued jobs that use it still run."""
    await services.scripts.delete(project, script_id)
    return Response(status_code=204)
