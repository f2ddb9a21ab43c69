"""Errors as pages, for browsers that open a page or send a form. Programs get problem documents."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote

from fastapi import Request
from starlette.datastructures import URL, Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from belljar.control.api.same_origin import SAFE_METHODS, is_api_path
from belljar.control.projects.identity import Identity
from belljar.control.web.forms import TOKEN_FIELD, read_form
from belljar.control.web.pages import page
from belljar.model.errors import BelljarError, InvalidFormToken, NotAuthenticated

#: Fields that are not written into a page again.
_NOT_KEPT = frozenset({TOKEN_FIELD, "key", "secret", "value", "password"})


def wants_page(scope: Scope) -> bool:
    """Return whether a browser waits for a page, rather than a program for JSON."""
    return not is_api_path(scope["path"]) and "text/html" in Headers(scope=scope).get("accept", "")


async def error_page(request: Request, error: BelljarError, message: str, *, is_same_origin: bool) -> Response:
    """Return the page for an error.

    Without a session, a page leads to the sign-in and back; a form is kept and can be sent again after it, if a page of
    this server sent it.
    """
    if isinstance(error, NotAuthenticated) and request.method in SAFE_METHODS:
        if request.headers.get("hx-request") == "true":  # a part of a page: the whole page goes to the sign-in
            return Response(status_code=error.status, headers={"HX-Redirect": _sign_in(_opened_page(request))})
        return RedirectResponse(_sign_in(request.url), 303)
    if isinstance(error, NotAuthenticated | InvalidFormToken) and is_same_origin:
        fields = await _form_of(request)
        if fields is not None:
            return _send_again(request, error, fields)
    heading = HTTPStatus(error.status).phrase
    return page("error.html", error.status, heading=heading, message=message)


def _opened_page(request: Request) -> URL:
    """Return the address of the page that requests a part of itself. The sign-in leads to no other server."""
    return URL(request.headers.get("hx-current-url", "/"))


def _sign_in(after: URL) -> str:
    path = after.path + (f"?{after.query}" if after.query else "")
    return f"/signin?next={quote(path, safe='/')}"


async def _form_of(request: Request) -> dict[str, str] | None:
    fields: dict[str, str] | None = getattr(request.state, "form", None)
    if fields is None:
        try:
            fields = await read_form(request)
        except BelljarError:
            return None
    return fields


def _send_again(request: Request, error: BelljarError, fields: dict[str, str]) -> Response:
    identity: Identity | None = getattr(request.state, "identity", None)
    session = identity.session if identity is not None else None
    return page(
        "send_again.html",
        error.status,
        message=error.message,
        action=request.url.path,
        form_token=session.form_token if session is not None else None,
        fields=[(name, value) for name, value in fields.items() if name not in _NOT_KEPT],
    )
