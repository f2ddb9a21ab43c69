"""/static: the files that pages load. They are the same for everyone, and their names change with their content."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from belljar.control.api.rules import public
from belljar.control.web.asset_files import files
from belljar.model.errors import NotFound

router = APIRouter(include_in_schema=False)

_CACHED = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}


@router.get("/static/{name}", dependencies=[public()])
async def get_static_file(name: str, request: Request) -> Response:
    """Return a file, compressed if the browser takes that."""
    file = files.get(name)
    if file is None:
        raise NotFound(f"there is no file {name[:80]!r}; open the page again")
    encoding, content = file.encoded(request.headers.get("accept-encoding", ""))
    headers = _CACHED if encoding == "identity" else {**_CACHED, "Content-Encoding": encoding}
    return Response(content, headers=headers, media_type=file.media_type)
