"""Errors as problem details (RFC 9457): `type`, `title`, `status`, `detail`, and a stable `code` to match on."""

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

from belljar.errors import BelljarError, InvalidOption, InvalidRequest, NotAuthenticated, NotFound

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
#: What FastAPI says of JSON that breaks Python's own bounds; it keeps the reason to itself.
_UNREADABLE = "There was an error parsing the body"
_CODES = {404: NotFound.code, 405: "method_not_allowed", 400: InvalidRequest.code, 413: "too_large"}


def problem(status: int, code: str, detail: str, more: Mapping[str, Any] | None = None) -> Response:
    """The response for one problem; `more` are its extension members."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, "code": code}
    headers = {"WWW-Authenticate": "Bearer"} if status == NotAuthenticated.status else {}
    return Response(json.dumps({**(more or {}), **body}), status, headers, MEDIA_TYPE)


def problem_of(error: BelljarError) -> Response:
    """The response for one of belljar's errors."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request_failed", code=error.code, error=error.message)
    return problem(error.status, error.code, error.message, error.details)


def answer_errors(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    @app.exception_handler(BelljarError)
    async def ours(_request: Request, error: BelljarError) -> Response:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return _invalid(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, BelljarError):
            return problem_of(error.__cause__)
        detail = str(error.detail)
        if detail == _UNREADABLE:
            detail = "the body is not JSON that can be read: too deep, or a number too long"
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}; /openapi.json lists what there is"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            detail = f"{request.url.path} does not take {request.method}; /openapi.json lists what it takes"
        response = problem(error.status_code, _CODES.get(error.status_code, InvalidRequest.code), detail)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        log.error("request_broke", path=request.url.path, exc_info=error)
        return problem(500, BelljarError.code, "belljar itself failed; the server's log has the details")


def _invalid(error: RequestValidationError) -> Response:
    """Says which field is wrong and how; the first of several."""
    errors = error.errors()
    first = errors[0]
    if first["type"] in ("json_invalid", "json_type"):
        reason = first.get("ctx", {}).get("error", "")
        return problem(400, InvalidRequest.code, f"the body is not JSON: {reason}".rstrip(": "))
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if not where and first["type"] in ("missing", "model_attributes_type", "dict_type", "model_type"):
        detail = "the body must be a JSON object, sent with Content-Type: application/json"
        return problem(400, InvalidRequest.code, detail)
    name = ".".join(where)
    reason = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        reason = "there is no such option; /openapi.json lists them"
    detail = f"{name}: {reason}" if name else reason
    more = {"option": where[0]} if where else {}
    return problem(InvalidOption.status, InvalidOption.code, detail, more)
