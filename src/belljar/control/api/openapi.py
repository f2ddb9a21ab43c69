"""The OpenAPI description: what the framework finds in the routes, and what it cannot know of errors and keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

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
        "code": {"type": "string", "description": "Stable, for programs to match on."},
        "request_id": {"type": "string", "description": "Finds the request in the server's log."},
        "option": {"type": "string", "description": "The option that is wrong."},
        "retry_after": {"type": "integer", "description": "Seconds to wait; also in the header Retry-After."},
    },
    "additionalProperties": True,
}
_ERRORS = {
    "400": "The request cannot be read.",
    "401": "No valid key.",
    "403": "The key may not do this.",
    "404": "Nothing of this name in the project.",
    "408": "The body came too slowly.",
    "409": "The idempotency key was used for another request.",
    "413": "The body is too large.",
    "422": "An option or the script is invalid.",
    "429": "Too many requests of this key are in flight.",
    "500": "An error of the server's own.",
    "503": "The server cannot do this now.",
    "507": "The server's disk is full.",
}
_OPEN = ("/healthz", "/readyz")


def body_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What a route adds to its description that reads this model from its body by itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI, models: tuple[type[BaseModel], ...]) -> None:
    """Make the app's OpenAPI description say what it does. `models` are those that routes read by themselves."""

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _description(app, models)
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]


def _description(app: FastAPI, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas.update(definitions["$defs"])
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _describe(path, method, operation)
    return found


def _describe(path: str, method: str, operation: dict[str, Any]) -> None:
    if path not in _OPEN:
        operation["security"] = [{"key": []}]
    responses = operation["responses"]
    for status in _statuses(path, method, operation):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        responses[status] = {"description": _ERRORS[status], "content": content}


def _statuses(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    """The errors that the operation may answer."""
    statuses = {"500", "503"} if path in _OPEN else {"400", "401", "403", "413", "429", "500", "503"}
    if "{" in path or method == "post":
        statuses |= {"404"}
    if operation.get("parameters") or "requestBody" in operation:
        statuses |= {"422"}
    if "requestBody" in operation:
        statuses |= {"408", "507"}
    if path in ("/v1/jobs", "/v1/scripts/{script_id}/run") and method == "post":
        statuses |= {"409"}
    return sorted(statuses)
