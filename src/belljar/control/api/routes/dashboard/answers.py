"""Answers that several pages give: go to another page, and the address of the next page of a listing."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from starlette.responses import RedirectResponse, Response


def go_to(path: str) -> Response:
    """Return the response after a form that was carried out: the browser opens that page."""
    return RedirectResponse(path, 303)


def next_page(path: str, query: Mapping[str, str | None], cursor: str | None) -> str | None:
    """Return the address of the next page, with the same filter; None on the last one."""
    if cursor is None:
        return None
    given = {name: value for name, value in query.items() if value}
    return f"{path}?{urlencode({**given, 'cursor': cursor})}"
