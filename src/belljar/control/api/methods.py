"""Which methods a path takes, over all routes that have it."""

from __future__ import annotations

import re

from fastapi import FastAPI


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods of every route that matches the path; HEAD wherever GET is."""
    found = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if _matches(template, path)
        for method in operations
    }
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


def _matches(template: str, path: str) -> bool:
    pieces = re.split(r"(\{[^}]*\})", template)
    # An artifact's path may hold slashes.
    names = {"{path}": "(?s:.*)"}
    pattern = "".join(names.get(piece, "[^/]+") if piece.startswith("{") else re.escape(piece) for piece in pieces)
    return re.fullmatch(pattern, path) is not None
