"""Errors as problem details (RFC 9457): `type`, `title`, `status`, `detail`, a stable `code`, and the request's id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from belljar.control.api.methods import allowed_methods
from belljar.control.api.rate_limit_headers import rate_limit_headers
from belljar.control.projects.key_format import IN_TEXT as KEY_IN_TEXT
from belljar.control.projects.key_format import PREFIX
from belljar.control.web.errors import error_page, wants_page
from belljar.control.web.pages import page
from belljar.model.errors import (
    BelljarError,
    InvalidOption,
    InvalidRequest,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    QuotaExceeded,
    TooLarge,
    without_paths,
)
from belljar.model.quotas import CountedQuota, RateLimit
from belljar.system.counters import increment

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
_CODES = {each.status: each.code for each in (InvalidRequest, NotFound, MethodNotAllowed, TooLarge)}
#: Messages for tenants about errors of the host, which only the operator can fix.
_TENANT_MESSAGES = {
    "disk_full": "the server's disk is full; tell its operator",
    "data_folder": "the server cannot use its data folder; tell its operator",
    "secrets_key": "the server cannot read its secrets; tell its operator",
    "damaged_image": "a file of the image is damaged on the server; tell its operator",
    "missing_tool": "a required program is not installed on the server; tell its operator",
}


def problem(status: int, code: str, detail: str, more: Mapping[str, Any] | None = None) -> Response:
    """Return the response for one problem; `more` are its extension members."""
    increment("belljar_api_errors", code=code)
    members = dict(more or {})
    if PREFIX in detail:  # a key in the wrong place of a request is not repeated: answers are often logged
        detail = KEY_IN_TEXT.sub(f"{PREFIX}HIDDEN", detail)
    headers = {"WWW-Authenticate": "Bearer"} if status == NotAuthenticated.status else {}
    if "retry_after" in members:
        headers["Retry-After"] = str(members["retry_after"])
    if members.pop("close", False):
        headers["Connection"] = "close"
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, "code": code}
    request_id = current_request_id()
    if request_id:
        body["request_id"] = request_id
    return Response(json.dumps({**members, **body}), status, headers, MEDIA_TYPE)


def current_request_id() -> str | None:
    """Return the id of the current request."""
    request_id: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return request_id


def problem_of(error: BelljarError, *, is_operator: bool = True) -> Response:
    """Return the response for an error. Details about the host are for its operator only."""
    response = problem(error.status, error.code, message_of(error, is_operator=is_operator), error.details)
    if isinstance(error, QuotaExceeded):
        response.headers.update(rate_limit_headers(_used_up(error)))
    return response


def message_of(error: BelljarError, *, is_operator: bool) -> str:
    """Return what the caller may know of an error. The log gets what is wrong with the host."""
    if error.status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return error.message
    log.error("request_failed", code=error.code, error=error.message)
    if is_operator or "retry_after" in error.details:
        return error.message
    return _TENANT_MESSAGES.get(error.code) or without_paths(error.message)


def _used_up(error: QuotaExceeded) -> list[RateLimit]:
    """Return the state of the quota that a request exceeded, if it begins anew after some time."""
    quota, reset = CountedQuota(error.details["quota"]), error.details.get("retry_after")
    if reset is None:
        return []
    return [RateLimit(quota=quota, limit=error.details["limit"], left=0, reset_seconds=reset)]


def internal_error() -> Response:
    """Return the response for a bug, which is in the log."""
    return problem(500, BelljarError.code, f"internal error; see the server log ({current_request_id()})")


def handle_errors(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    @app.exception_handler(BelljarError)
    async def belljar_error(request: Request, error: BelljarError) -> Response:
        if wants_page(request.scope):  # authentication has checked the origin of what changes something
            message = message_of(error, is_operator=_is_operator(request))
            return await error_page(request, error, message, is_same_origin=True)
        return problem_of(error, is_operator=_is_operator(request))

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        return _invalid(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, BelljarError):
            return problem_of(error.__cause__, is_operator=_is_operator(request))
        detail, headers = str(error.detail), dict(error.headers or {})
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"unknown path {request.url.path[:200]}; see /openapi.json"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            methods = allowed_methods(app, request.url.path)
            headers["Allow"] = ", ".join(methods)
            detail = f"{request.url.path[:200]} does not take {request.method}; use {headers['Allow']}"
        if wants_page(request.scope):
            return page("error.html", error.status_code, heading=HTTPStatus(error.status_code).phrase, message=detail)
        response = problem(error.status_code, _CODES.get(error.status_code, InvalidRequest.code), detail)
        response.headers.update(headers)
        return response


def _is_operator(request: Request) -> bool:
    identity = getattr(request.state, "identity", None)
    return identity is not None and bool(identity.is_operator)


def _invalid(error: RequestValidationError) -> Response:
    """Return the response for the first invalid field."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = ".".join(location)
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "unknown option; see /openapi.json"
    detail = f"{name}: {reason}" if name else reason
    more = {"option": location[0]} if location else {}
    return problem(InvalidOption.status, InvalidOption.code, detail, more)
