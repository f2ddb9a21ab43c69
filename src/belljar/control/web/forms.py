"""Reads the forms of pages, and checks that a session's own page sent them."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl

from fastapi import Request

from belljar.control.projects.identity import Identity, IdentityKind
from belljar.model.errors import InvalidFormToken, InvalidRequest, ProjectSwitched, TooLarge

MEDIA_TYPE = "application/x-www-form-urlencoded"
#: The field that every form of a session has.
TOKEN_FIELD = "form_token"  # noqa: S105
#: The project that a form was opened in. Another page of the same browser may have switched to another one.
PROJECT_FIELD = "in_project"
#: Of most forms.
MAX_FORM_BYTES = 64 * 1024
_MAX_FIELDS = 100
_MAX_PATH_CHARACTERS = 500


async def read_form(request: Request, max_bytes: int = MAX_FORM_BYTES) -> dict[str, str]:
    """Return the fields of a form. Raises InvalidRequest, TooLarge, RequestTimeout."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise InvalidRequest(f"the body must be a form, sent with Content-Type: {MEDIA_TYPE}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge(f"the form is over {max_bytes} bytes; enter less", limit=max_bytes)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise InvalidRequest("the form is malformed; open its page again") from None
    fields = dict(pairs)
    request.state.form = fields  # for the page that offers to send it again
    return fields


async def read_session_form(request: Request, identity: Identity, max_bytes: int = MAX_FORM_BYTES) -> dict[str, str]:
    """Return the fields of a form of the request's session.

    With `--auth off` there is no session: authentication has refused requests of other sites' pages. Raises
    InvalidFormToken, ProjectSwitched for a form of another project, and like `read_form`.
    """
    fields = await read_form(request, max_bytes)
    given = fields.pop(TOKEN_FIELD, "")
    if identity.session is not None:
        if not hmac.compare_digest(given.encode(), identity.session.form_token.encode()):
            raise InvalidFormToken("you signed in again after this form was opened; check it, and send it again")
    elif identity.kind is not IdentityKind.NOBODY:
        raise InvalidRequest("this form is for a session of a browser; sign in, or use the API with your key")
    project = fields.pop(PROJECT_FIELD, identity.project)
    if project != identity.project:
        raise ProjectSwitched(
            f"this form was opened in the project {project[:64]!r}, and you have switched to {identity.project!r}; "
            "switch back, and send it again"
        )
    return fields


def local_path(given: str | None, default: str) -> str:
    """Return a path of this server to go to, or the default for anything else: no link may lead elsewhere."""
    if given is None or len(given) > _MAX_PATH_CHARACTERS or not (given.isascii() and given.isprintable()):
        return default
    if not given.startswith("/") or given.startswith(("//", "/\\", "/signin", "/v1/")) or " " in given:
        return default
    return given
