"""/v1/scripts: upload, look at, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile

from belljar.control.api.dependencies import Caller, Cursor, Limit, Project, ServicesDep
from belljar.control.api.forms import is_form, received_form
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
                        "language": {"type": "string", "description": "Else told from the extension or `#!` line."},
                        "entrypoint": {"type": "string", "description": "Path of the file to run in an archive."},
                    },
                }
            }
        },
    }
}


@router.post("", status_code=201, openapi_extra=_UPLOAD)
async def upload_script(request: Request, services: ServicesDep, key: Caller) -> dict[str, Any]:
    """Keep a script: a file or an archive. The same content gives the same `script_id`."""
    services.disk.require()  # before the body is received
    if not is_form(request.headers.get("content-type", "")):
        raise InvalidRequest("send the script as multipart/form-data: curl -F script=@FILE")
    async with received_form(request) as form:
        unknown = sorted(set(form) - {"script", "language", "entrypoint"})
        if unknown:
            raise InvalidRequest(f"the form has no field {unknown[0][:64]!r}; there are script, language, entrypoint")
        part, language, entrypoint = form.get("script"), form.get("language"), form.get("entrypoint")
        if not isinstance(part, UploadFile):
            raise InvalidRequest("the form has no file in its field script: curl -F script=@FILE")
        if isinstance(language, UploadFile) or isinstance(entrypoint, UploadFile):
            raise InvalidRequest("language and entrypoint are plain fields, not files")
        async with services.uploading.turn(key.id), services.submitting.turn(key.id):
            script = await services.scripts.upload(
                key.project,
                _chunks(part),
                part.filename or "",
                language=language or None,
                entrypoint=entrypoint or None,
            )
    return script.public()


async def _chunks(part: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await part.read(_CHUNK_BYTES):
        yield chunk


@router.get("")
async def list_scripts(
    services: ServicesDep, project: Project, limit: Limit = 50, cursor: Cursor = None
) -> dict[str, Any]:
    """The project's scripts, newest first."""
    scripts, next_cursor = await services.scripts.list(project, limit=limit, cursor=cursor)
    return {"scripts": [script.public() for script in scripts], "next_cursor": next_cursor}


@router.get("/{script_id}")
async def get_script(script_id: str, services: ServicesDep, project: Project) -> dict[str, Any]:
    return (await services.scripts.get(project, script_id)).public()


@router.delete("/{script_id}", status_code=204)
async def delete_script(script_id: str, services: ServicesDep, project: Project) -> Response:
    """Forget a script. Jobs that were submitted with it still run."""
    await services.scripts.delete(project, script_id)
    return Response(status_code=204)
