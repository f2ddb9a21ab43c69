"""The methods that a path takes, over all of its routes."""

from __future__ import annotations

import re

from fastapi import FastAPI


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods of every route that matches the path, with HEAD beside GET."""
    methods = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if _matches(template, path)
        for method in operations
    }
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _matches(template: str, path: str) -> bool:
    pieces = re.split(r"(\{[^}]*\})", template)
    # An artifact's path may contain slashes.
    names = {"{path}": "(?s:.*)"}
    pattern = "".join(names.get(piece, "[^/]+") if piece.startswith("{") else re.escape(piece) for piece in pieces)
    return re.fullmatch(pattern, path) is not None
