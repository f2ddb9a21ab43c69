"""The OpenAPI description: the framework's, with errors, keys and the bodies that routes read themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from belljar.control.api.rules import RuledRoute, ruled_routes

_PROBLEM = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457: why a request was refused or failed.",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do."},
        "code": {"type": "string", "description": "A stable code, for programs."},
        "request_id": {"type": "string", "description": "The request's id in the server's log."},
        "option": {"type": "string", "description": "The invalid option."},
        "retry_after": {"type": "integer", "description": "Seconds to wait; also in the header Retry-After."},
    },
    "additionalProperties": True,
}
_ERRORS = {
    "400": "The request is malformed.",
    "401": "No valid key.",
    "403": "The key lacks the scope, or its project is suspended.",
    "404": "The project has nothing of this name.",
    "408": "The body arrived too slowly.",
    "409": "The idempotency key belongs to another request, or the object is in a state that forbids this.",
    "413": "The body is too large.",
    "422": "An option or the script is invalid.",
    "429": "The key has too many requests in flight, the project has reached a quota, or the address sent many invalid "
    "keys.",
    "500": "Internal error.",
    "503": "The server cannot do this now.",
    "507": "The server's disk is full.",
}
#: Operations that may meet a state in which they are impossible.
_CONFLICTS = frozenset(
    {
        ("post", "/v1/jobs"),
        ("post", "/v1/scripts"),
        ("post", "/v1/scripts/{script_id}/run"),
        ("post", "/v1/keys"),
        ("post", "/v1/keys/{key_id}/rotate"),
        ("post", "/v1/projects"),
        ("patch", "/v1/projects/{name}"),
        ("delete", "/v1/projects/{name}"),
    }
)
_PUBLIC_PATHS = ("/healthz", "/readyz")


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Return the OpenAPI part of a route that reads this model from its body itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, models: tuple[type[BaseModel], ...]) -> None:
    """Complete the app's OpenAPI description. `models` are those that routes read themselves."""

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app, models)
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]


def _description(app: FastAPI, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas.update(definitions["$defs"])
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    rules = {(method.lower(), route.path): route for route in ruled_routes(app) for method in route.methods}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe(path, method, operation, rules[method, path])
    return document


def _describe(path: str, method: str, operation: dict[str, Any], rule: RuledRoute) -> None:
    if not rule.is_public:
        operation["security"] = [{"key": [] if rule.scope is None else [rule.scope.value]}]
    responses = operation["responses"]
    for status in _statuses(path, method, operation):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[status] = {"description": _ERRORS[status], "content": content}


def _statuses(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    """Return the error statuses of an operation."""
    statuses = {"500", "503"} if path in _PUBLIC_PATHS else {"400", "401", "403", "413", "429", "500", "503"}
    if "{" in path or method == "post":
        statuses |= {"404"}
    if operation.get("parameters") or "requestBody" in operation:
        statuses |= {"422"}
    if "requestBody" in operation:
        statuses |= {"408", "507"}
    if (method, path) in _CONFLICTS:
        statuses |= {"409"}
    return sorted(statuses)
