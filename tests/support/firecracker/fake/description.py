"""Checks a request against Firecracker's official OpenAPI (Swagger 2.0) description."""

from __future__ import annotations

import re
from typing import Any


def complaint(description: dict[str, Any], method: str, path: str, body: Any) -> str | None:
    """Return the fault of a request, or None."""
    operation = _operation(description, method, path)
    if operation is None:
        return f"Invalid request method and/or path: {method} {path}."
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "body":
            if body is None:
                return "Empty body." if parameter.get("required") else None
            return mismatch(description, parameter["schema"], body, "body")
    return "GET request cannot have a body." if body is not None else None


def mismatch(description: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> str | None:
    """Return where and how a value violates a schema, or None."""
    if "$ref" in schema:
        schema = description["definitions"][schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if kind == "object":
        return _object(description, schema, value, where)
    if kind == "array":
        if not isinstance(value, list):
            return f"{where} is no array"
        mismatches = (mismatch(description, schema["items"], each, f"{where}[{n}]") for n, each in enumerate(value))
        return next((each for each in mismatches if each), None)
    types = {"string": str, "integer": int, "boolean": bool, "number": (int, float)}
    wrong = kind in types and (not isinstance(value, types[kind]) or (kind == "integer" and isinstance(value, bool)))
    if wrong:
        return f"{where} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where}: unknown variant {value!r}, expected one of {schema['enum']}"
    if value < schema.get("minimum", value) or value > schema.get("maximum", value):
        return f"{where} is out of range: {value}"
    return None


def _object(description: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where} is no object"
    for name in schema.get("required", ()):
        if name not in value:
            return f"missing field `{name}` in {where}"
    properties = schema.get("properties", {})
    for name, each in value.items():
        if name not in properties:
            return f"unknown field `{name}` in {where}"
        if fault := mismatch(description, properties[name], each, f"{where}.{name}"):
            return fault
    return None


def _operation(description: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    for template, operations in description["paths"].items():
        pattern = re.sub(r"\\{\w+\\}", "[A-Za-z0-9_]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return operations[method.lower()]
    return None
