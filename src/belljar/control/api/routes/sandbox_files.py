"""/v1/sandboxes/{id}/files: read and write a sandbox's files. Bytes are streamed; nothing is stored on the way.

A path is relative to /work; one that begins with a slash (`…/files//etc/hosts`) is absolute in the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote_to_bytes

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import IdentityDep
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.routes import artifacts  # noqa: F401 (registers the path convertor)
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import Call, CallDep, guest_path
from belljar.control.api.streams import Stream, StreamAborted
from belljar.control.audit.operation import record_nothing
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.request import FilePatch
from belljar.link.sandboxes import FileContent
from belljar.model.errors import InvalidOption, InvalidRequest, TooLarge
from belljar.model.sandbox_values import ROOT, FileEntry, GuestUser, WriteOptions

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/files", tags=["sandboxes"])

_MIB = 1024 * 1024
#: Entries of one listing.
_MAX_ENTRIES = 10_000
_MAX_LISTED_BYTES = 4 * _MIB
#: How long a listing may take. A hostile guest's never ends.
_LIST_SECONDS = 120.0
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z")

User = Annotated[
    Literal["root"] | None, Query(description="In a sandbox of root: whose permissions hold; default: its own user's.")
]
Mode = Annotated[str, Query(pattern="^[0-7]{3,4}$", description="Mode of a new file or folder, in octal digits.")]
Archive = Annotated[Literal["tar"], Query(description="The kind of archive.")]


async def path_of(request: Request) -> str:
    """Return the guest path that a URL names, with its bytes as they were sent. Raises InvalidOption."""
    raw: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode()
    return guest_path(os.fsdecode(unquote_to_bytes(raw.partition(b"/files/")[2])))


PathDep = Annotated[str, Depends(path_of)]


@router.get("/{path:anypath}", response_class=Stream, dependencies=[require(Scope.SANDBOXES)])
async def read_file(
    call: CallDep,
    guest_path: PathDep,
    path: str,
    list: Annotated[bool, Query(description="List the folder instead.")] = False,
    depth: Annotated[int, Query(ge=1, le=128, description="With `list`: how deep.")] = 1,
    stat: Annotated[bool, Query(description="Describe the file instead.")] = False,
    follow: Annotated[bool, Query(description="With `stat`: describe what a link leads to.")] = True,
    user: User = None,
    range: Annotated[str | None, Header(max_length=100, description="One range of bytes.")] = None,
) -> Response:
    """Download a file, or one range of its bytes; with `stat` or `list`, describe it or the entries of a folder.

    A file that changes meanwhile may give bytes of both versions; one that gets shorter breaks the download off.
    """
    files, who = call.machine.files, _user(user)
    if stat:
        return _json(_public(await files.stat(guest_path, follow=follow, user=who)))
    if list:
        return await _list(call, guest_path, depth, who)
    status, offset, length, size = 200, 0, None, None
    if range is not None:
        entry = await files.stat(guest_path, user=who)
        offset, length = _range_of(range, entry.size_bytes)
        status, size = 206, entry.size_bytes
    opened = _read(call, guest_path, offset, length, who)
    content = await _first(opened)
    entry = content.entry
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(os.fsencode(guest_path.rpartition('/')[2]))}",
        "X-Content-Type-Options": "nosniff",
    }
    if status == 206:
        assert length is not None
        headers |= {"Content-Range": f"bytes {offset}-{offset + length - 1}/{size}", "Content-Length": str(length)}
    elif entry.size_bytes:  # files of /proc have no size, but bytes
        length = entry.size_bytes
        headers["Content-Length"] = str(length)
    body = _exactly(opened, length)
    return Stream(body, status, media_type="application/octet-stream", headers=headers)


async def _list(call: Call, path: str, depth: int, user: GuestUser | None) -> Response:
    entries: list[dict[str, Any]] = []
    truncated, size = False, 0
    async with contextlib.aclosing(_as_generator(call.machine.files.list(path, depth=depth, user=user))) as found:
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                async for entry in found:
                    size += len(entry.path) + len(entry.target or "")
                    if len(entries) == _MAX_ENTRIES or size > _MAX_LISTED_BYTES:
                        truncated = True
                        break
                    entries.append(_public(entry))
        except TimeoutError:
            truncated = True
    return _json({"path": path, "entries": entries, "truncated": truncated})


@router.put("/{path:anypath}", status_code=201, dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.write_file")
async def write_file(
    request: Request,
    call: CallDep,
    guest_path: PathDep,
    path: str,
    folder: Annotated[bool, Query(description="Make a folder instead; the body is empty.")] = False,
    mode: Mode | None = None,
    parents: Annotated[bool, Query(description="Make missing folders.")] = True,
    exclusive: Annotated[bool, Query(description="Refuse (409) if there is something.")] = False,
    append: Annotated[bool, Query(description="Write behind what is there.")] = False,
    offset: Annotated[int | None, Query(ge=0, le=2**62, description="Write there, and keep the rest.")] = None,
    user: User = None,
) -> Response:
    """Write the body to a file, of any size that the sandbox's disk has room for.

    Readers see the old file or the whole new one: an upload that breaks off changes nothing, except with `append` and
    `offset`.
    """
    record_nothing("sandbox.write_file")
    files, who = call.machine.files, _user(user)
    if append and offset is not None:
        raise InvalidOption("set append or offset, not both", option="offset")
    if folder:
        async for data in request.stream():
            if data:
                raise InvalidRequest("a folder has no body; send none with folder=true")
        await files.mkdir(guest_path, mode=int(mode or "755", 8), parents=parents, user=who)
        return _json(_public(await files.stat(guest_path, user=who)), 201)
    _check_size(request, call)
    options = WriteOptions(
        mode=int(mode or "644", 8),
        atomic=not append and offset is None and not exclusive,
        append=append,
        exclusive=exclusive,
        parents=parents,
        offset=offset,
    )
    return _json(_public(await files.write(guest_path, _body(request), options, user=who)), 201)


@router.delete("/{path:anypath}", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.remove_file")
async def remove_file(
    call: CallDep,
    guest_path: PathDep,
    path: str,
    recursive: Annotated[bool, Query(description="Remove a folder with what is in it.")] = False,
    user: User = None,
) -> Response:
    """Remove a file, a link or an empty folder. Links are not followed."""
    record_nothing("sandbox.remove_file")
    await call.machine.files.remove(guest_path, recursive=recursive, user=_user(user))
    return Response(status_code=204)


@router.patch("/{path:anypath}", openapi_extra=body_of(FilePatch), dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.change_file")
async def change_file(request: Request, call: CallDep, guest_path: PathDep, path: str, user: User = None) -> Response:
    """Move the file or folder, or change its mode, and describe it."""
    record_nothing("sandbox.change_file")
    change = await read_small(request, FilePatch)
    files, who, place = call.machine.files, _user(user), guest_path
    if change.move_to is not None:
        place = _absolute(change.move_to)
        await files.move(guest_path, place, replace=change.replace, user=who)
    else:
        await files.chmod(guest_path, int(change.mode or "", 8), user=who)
    return _json(_public(await files.stat(place, follow=change.move_to is None, user=who)))


@router.get("", response_class=Stream, dependencies=[require(Scope.SANDBOXES)])
async def download_archive(
    call: CallDep, archive: Archive, path: Annotated[str, Query(max_length=4095)] = "", user: User = None
) -> Stream:
    """Download a folder (default: /work) as a tar archive. One that breaks off ends without the end of the response."""
    place = _absolute(path)
    await call.machine.files.stat(place, user=_user(user))  # while an error response is still possible
    pieces = _as_generator(call.machine.files.archive(place, user=_user(user)))
    headers = {"Content-Disposition": "attachment; filename=files.tar", "X-Content-Type-Options": "nosniff"}
    return Stream(pieces, media_type="application/x-tar", headers=headers)


@router.put("", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.write_archive")
async def upload_archive(
    request: Request,
    call: CallDep,
    identity: IdentityDep,
    archive: Archive,
    path: Annotated[str, Query(max_length=4095)] = "",
    user: User = None,
) -> Response:
    """Extract the body, a tar archive without compression, into a folder that exists (default: /work)."""
    record_nothing("sandbox.write_archive")
    _check_size(request, call)
    place = _absolute(path)
    await call.machine.files.extract(place, _body(request), user=_user(user))
    return _json(_public(await call.machine.files.stat(place, user=_user(user))))


def _absolute(path: str) -> str:
    return guest_path(path, "path")


def _user(name: str | None) -> GuestUser | None:
    return ROOT if name == "root" else None


def _check_size(request: Request, call: Call) -> None:
    """Refuse at once what no sandbox of this shape has room for. Raises TooLarge."""
    resources = call.sandbox.spec.resources
    limit = (resources.disk_mb or resources.memory_mb) * _MIB
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        place = "disk" if resources.disk_mb else "memory, which holds its files without disk_mb"
        raise TooLarge(f"the body has {length[:20]} bytes; the sandbox has {limit} bytes of {place}", limit=limit)


async def _body(request: Request) -> AsyncIterator[bytes]:
    async for data in request.stream():
        if data:
            yield data


async def _read(
    call: Call, path: str, offset: int, length: int | None, user: GuestUser | None
) -> AsyncGenerator[FileContent | bytes, None]:
    """Yield the opened file, then its bytes: whoever has the generator owns the file."""
    async with call.machine.files.read(path, offset=offset, length=length, user=user) as content:
        yield content
        async for data in content:
            yield data


async def _first(opened: AsyncGenerator[FileContent | bytes, None]) -> FileContent:
    content = await anext(opened)
    assert not isinstance(content, bytes)
    return content


async def _exactly(
    opened: AsyncGenerator[FileContent | bytes, None], length: int | None
) -> AsyncGenerator[bytes | str, None]:
    """Yield `length` bytes (None: all). Raises StreamAborted when there are fewer."""
    left = length
    async with contextlib.aclosing(opened):
        async for data in opened:
            assert isinstance(data, bytes)
            if left is None:
                yield data
                continue
            yield data[:left]
            left -= min(left, len(data))
            if not left:
                return
    if left:
        raise StreamAborted("the file became shorter while it was read")


def _as_generator(source: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    """Return the iterator as a generator, which can be closed."""
    if isinstance(source, AsyncGenerator):
        return source

    async def generate() -> AsyncGenerator[Any, None]:
        async for each in source:
            yield each

    return generate()


def _range_of(text: str, size: int) -> tuple[int, int]:
    """Return offset and length of a range. Raises InvalidOption for another kind, or one beyond the end."""
    match = _RANGE.match(text)
    first, last = (match[1], match[2]) if match else ("", "")
    if not first and not last:
        raise InvalidOption(f"Range is {text[:40]!r}; send one range such as bytes=0-99", option="range")
    if first:
        start, stop = int(first), min(int(last) if last else size - 1, size - 1)
    else:
        start, stop = max(0, size - int(last)), size - 1
    if start > stop:
        raise InvalidOption(f"Range is {text[:40]!r}, but the file has {size} bytes", option="range", limit=size)
    return start, stop - start + 1


def _public(entry: FileEntry) -> dict[str, Any]:
    """Return a file as the API shows it. Of a name that is no UTF-8, `path_percent` is what a URL needs."""
    fields = entry.model_dump(exclude={"mode"})
    fields |= {"kind": entry.kind.value, "mode": f"{entry.mode & 0o7777:03o}"}
    for name in ("path", "target"):
        text = fields[name]
        if text is not None and not text.isascii():
            fields[name] = os.fsencode(text).decode(errors="replace")
            if fields[name] != text:
                fields[f"{name}_percent"] = quote(os.fsencode(text))
    return fields


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return json_response(value, status)
