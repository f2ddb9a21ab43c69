"""Pages: the files of a sandbox. Names and contents are the guest's: text at most, never a page or a script.

Downloads and uploads are the API's, as attachments and raw bytes; only small text passes through a form.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from fastapi import APIRouter, Response

from belljar.control.api.audited import audited
from belljar.control.api.routes import artifacts  # noqa: F401 (registers the path convertor)
from belljar.control.api.routes.dashboard.answers import go_to
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.routes.sandbox_files import PathDep
from belljar.control.api.rules import require
from belljar.control.api.sandbox_calls import Call, CallDep, call_of, guest_path
from belljar.control.audit.operation import record_nothing
from belljar.control.projects.scopes import Scope
from belljar.control.web.form_state import FormState, InvalidForm, lines
from belljar.model.errors import BelljarError, Conflict
from belljar.model.sandbox import SandboxStatus
from belljar.model.sandbox_values import FileEntry, FileKind, WriteOptions

router = APIRouter(include_in_schema=False)

_PATH = "/sandboxes/{sandbox_id}"
_KB = 1024
#: Text that is shown and can be changed on a page; larger files are downloaded.
MAX_TEXT_BYTES = 256 * _KB
#: Each byte of it as an escape of three characters, and the other fields.
_MAX_FORM_BYTES = 3 * MAX_TEXT_BYTES + 64 * _KB
_MAX_ENTRIES = 2000
#: How long a listing may take, and the reading of a text: a hostile guest's never ends.
_SECONDS = 10.0
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Zl", "Zp"})


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRow:
    """One entry of a folder."""

    name: str
    kind: str
    size_bytes: int
    mode: str
    modified_at: datetime | None
    target: str | None
    #: The path in addresses: percent-encoded bytes.
    url_path: str
    #: The same for the fields of forms, absolute.
    raw_path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """A file that is shown as text."""

    text: str
    #: Whether its lines end with CRLF, which browsers do not tell from LF.
    is_crlf: bool
    #: What the file was when it was read: a later change by others is noticed.
    version: str
    #: Whether it has characters that are not seen, or that turn the direction of others.
    has_hidden: bool


@router.get(f"{_PATH}/files", dependencies=[require(Scope.SANDBOXES)])
async def show_working_folder(sandbox_id: str, page: PagesDep) -> Response:
    """Lead to the working folder."""
    sandbox = await page.services.sandboxes.get(page.identity.project, sandbox_id)
    return go_to(f"/sandboxes/{sandbox.id}/files/")


@router.get(f"{_PATH}/files/{{path:anypath}}", dependencies=[require(Scope.SANDBOXES)])
async def show_file(sandbox_id: str, page: PagesDep, guest_path: PathDep, path: str) -> Response:
    """Show a folder, or a file of text."""
    sandbox = await page.services.sandboxes.get(page.identity.project, sandbox_id)
    if sandbox.status is not SandboxStatus.RUNNING:
        return await page.show("sandbox_not_running.html", sandbox=sandbox, what="Files", tab="files")
    call = await call_of(sandbox_id, page.services, page.identity.project)
    place = guest_path.rstrip("/") or "/"
    return await _show(page, call, place, FormState())


@router.post(f"{_PATH}/file/save", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.write_file")
async def save_file(sandbox_id: str, page: PagesDep, call: CallDep) -> Response:
    """Write the text of a form to a file that exists, unless it changed since it was shown."""
    record_nothing("sandbox.write_file")
    fields = await page.form(_MAX_FORM_BYTES)
    place = _place_of(fields)
    try:
        entry = await call.machine.files.stat(place)
        if fields.get("version") != _version(entry) and fields.get("overwrite") != "yes":
            raise Conflict("the file was changed since it was shown here; download it, or save and overwrite it")
        text = lines(fields.get("text", ""))
        data = (text.replace("\n", "\r\n") if fields.get("crlf") == "yes" else text).encode()
        options = WriteOptions(mode=entry.mode & 0o7777, parents=False)
        await call.machine.files.write(place, _pieces(data), options)
    except BelljarError as error:
        state = page.rejected(fields, error)
        return await _show(page, call, place, state, error.status, is_conflict=isinstance(error, Conflict))
    return go_to(_address(call, place))


@router.post(f"{_PATH}/file/create", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.write_file")
async def create_file(sandbox_id: str, page: PagesDep, call: CallDep) -> Response:
    """Make an empty file or a folder in the folder that is shown."""
    record_nothing("sandbox.write_file")
    fields = await page.form()
    folder, name = _place_of(fields), fields.get("name", "").strip()
    try:
        if not name:
            raise InvalidForm({"name": "enter a name"})
        place = guest_path(name if name.startswith("/") else f"{folder}/{name}", "name")
        if fields.get("kind") == "folder":
            await call.machine.files.mkdir(place, parents=True)
        else:
            await call.machine.files.write(place, _pieces(b""), WriteOptions(atomic=False, exclusive=True))
    except BelljarError as error:
        return await _show(page, call, folder, page.rejected(fields, error), error.status)
    return go_to(_address(call, place))


@router.post(f"{_PATH}/file/remove", dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.remove_file")
async def remove_file(sandbox_id: str, page: PagesDep, call: CallDep) -> Response:
    """Remove a file, or a folder with what is in it."""
    record_nothing("sandbox.remove_file")
    place = _place_of(await page.form())
    await call.machine.files.remove(place, recursive=True)
    return go_to(_address(call, place.rpartition("/")[0] or "/"))


async def _show(
    page: Pages, call: Call, place: str, form: FormState, status: int = 200, *, is_conflict: bool = False
) -> Response:
    entry = await call.machine.files.stat(place)
    values = {
        "sandbox": call.sandbox,
        "place": place,
        "name": place.rpartition("/")[2] or "/",
        "crumbs": _crumbs(call, place),
        "entry": entry,
        "url_path": _url_path(place),
        "raw_path": _raw_path(place),
        "modified_at": _time(entry),
        "form": form,
    }
    if entry.kind is FileKind.FOLDER:
        rows, is_truncated = await _rows(call, place)
        return await page.show("sandbox_folder.html", status=status, rows=rows, is_truncated=is_truncated, **values)
    text, why_not = await _text(call, place, entry)
    return await page.show(
        "sandbox_file.html", status=status, text=text, why_not=why_not, is_conflict=is_conflict, **values
    )


async def _rows(call: Call, place: str) -> tuple[list[FileRow], bool]:
    rows: list[FileRow] = []
    found = call.machine.files.list(place)
    try:
        async with asyncio.timeout(_SECONDS):
            async for entry in found:
                if len(rows) == _MAX_ENTRIES:
                    return _sorted(rows), True
                rows.append(_row(place, entry))
    except TimeoutError:
        return _sorted(rows), True
    finally:
        if (close := getattr(found, "aclose", None)) is not None:
            await close()
    return _sorted(rows), False


def _sorted(rows: list[FileRow]) -> list[FileRow]:
    return sorted(rows, key=lambda row: (row.kind != FileKind.FOLDER.value, row.name))


def _row(place: str, entry: FileEntry) -> FileRow:
    path = f"{place.rstrip('/')}/{entry.path}"
    kind = {FileKind.FOLDER: stat.S_IFDIR, FileKind.LINK: stat.S_IFLNK, FileKind.FILE: stat.S_IFREG}
    return FileRow(
        name=entry.path,
        kind=entry.kind.value,
        size_bytes=entry.size_bytes,
        mode=stat.filemode(kind.get(entry.kind, 0) | entry.mode & 0o7777),
        modified_at=_time(entry),
        target=entry.target,
        url_path=_url_path(path),
        raw_path=_raw_path(path),
    )


async def _text(call: Call, place: str, entry: FileEntry) -> tuple[Text | None, str]:
    """Return the file as text; else why it is not shown."""
    if entry.kind is not FileKind.FILE:
        return None, f"This is a {entry.kind.value}, which has no content to show."
    if entry.size_bytes > MAX_TEXT_BYTES:
        return None, "It is larger than 256 KiB, which a page does not show."
    data = bytearray()
    try:
        async with asyncio.timeout(_SECONDS), call.machine.files.read(place, length=MAX_TEXT_BYTES + 1) as content:
            async for piece in content:
                data += piece
                if len(data) > MAX_TEXT_BYTES:
                    return None, "It is larger than 256 KiB, which a page does not show."
    except TimeoutError:
        return None, f"It could not be read within {_SECONDS:g} s."
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        if not _has_controls(text):
            is_crlf = "\r\n" in text
            if "\r" not in text.replace("\r\n", "") and (not is_crlf or "\n" not in text.replace("\r\n", "")):
                has_hidden = any(unicodedata.category(each) in _HIDDEN for each in text if not each.isascii())
                return Text(text=text, is_crlf=is_crlf, version=_version(entry), has_hidden=has_hidden), ""
            return None, "Its lines end in several ways, which a form would change."
    return None, "It is not text in UTF-8."


def _has_controls(text: str) -> bool:
    return any(character < " " and character not in "\t\n\r\f\x1b" for character in text)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data


def _version(entry: FileEntry) -> str:
    return f"{entry.modified_ns}.{entry.size_bytes}"


def _time(entry: FileEntry) -> datetime | None:
    """Return when the file was changed; the guest may say anything."""
    try:
        return datetime.fromtimestamp(entry.modified_ns / 1_000_000_000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _place_of(fields: dict[str, str]) -> str:
    """Return the path that a form names in percent-encoded bytes. Raises InvalidOption."""
    return guest_path(os.fsdecode(unquote_to_bytes(fields.get("path", ""))), "path").rstrip("/") or "/"


def _raw_path(place: str) -> str:
    return quote(os.fsencode(place))


def _url_path(place: str) -> str:
    """Return the path as addresses have it: relative to /work where it is there."""
    return _raw_path(place.removeprefix("/work/") if place.startswith("/work/") else place)


def _address(call: Call, place: str) -> str:
    return f"/sandboxes/{call.sandbox.id}/files/{'' if place == '/work' else _url_path(place)}"


def _crumbs(call: Call, place: str) -> list[tuple[str, str]]:
    """Return name and address of each folder above."""
    found, at = [("/", _address(call, "/"))], ""
    for name in [each for each in place.split("/") if each][:-1]:
        at = f"{at}/{name}"
        found.append((name, _address(call, at)))
    return found if place != "/" else []
