"""Receives multipart forms within limits; files over 1 MB go to the system's temporary folder."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from belljar.model.errors import InvalidRequest
from belljar.system.host_errors import disk_full_errors

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]\Z")
#: Bytes that are parsed before the event loop may run other tasks.
_CHUNK_BYTES = 16 * 1024


def is_form(content_type: str) -> bool:
    """Return whether this is the type of a multipart form."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


@asynccontextmanager
async def received_form(request: Request) -> AsyncIterator[FormData]:
    """Receive the whole form. Raises InvalidRequest, TooLarge, DiskFull."""
    # The boundary alone: the parser would look up any `charset`, and forms are UTF-8 (RFC 7578).
    headers = Headers({"content-type": f'multipart/form-data; boundary="{_boundary(request)}"'})
    with disk_full_errors(f"receive a form in {tempfile.gettempdir()}"):
        async with aclosing(_chunks(request)) as chunks:
            try:
                parser = MultiPartParser(headers, chunks, max_files=1, max_fields=4, max_part_size=4096)
                form = await parser.parse()
            except MultiPartException as error:
                raise InvalidRequest(f"malformed form: {error.message}") from None
    try:
        yield form
    finally:
        await form.close()


def _boundary(request: Request) -> str:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"").decode("latin-1")
    if not _BOUNDARY.match(boundary):
        raise InvalidRequest("the Content-Type has no valid boundary; send the form with curl -F script=@FILE")
    return boundary


async def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    async for chunk in request.stream():
        for at in range(0, len(chunk), _CHUNK_BYTES):
            yield chunk[at : at + _CHUNK_BYTES]
            await asyncio.sleep(0)
