"""What a visitor of a port's host name shows: a token in a header, in the URL once, or in the cookie made of it.

All sandboxes are of one site for browsers, so that a page of one could send requests to another with the visitor's
cookie. A cookie therefore counts only for requests of the port's own pages, and for pages that are opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from belljar.control.api.ingress.origin_headers import OWN_COOKIES, TOKEN_HEADER
from belljar.control.api.same_origin import SAFE_METHODS

PARAMETER = b"belljar_token"
_COOKIE = f"{OWN_COOKIES.decode()}port"
_MAX_CHARACTERS = 128


class Shown(Enum):
    """Where a visitor's token is."""

    NOWHERE = "nowhere"
    URL = "url"
    HEADER = "header"
    COOKIE = "cookie"


@dataclass(frozen=True, slots=True)
class Visitor:
    """What a request shows."""

    token: str | None
    shown: Shown
    #: The query without the token.
    query: bytes


def visitor_of(scope: Scope, headers: Headers, *, is_tls: bool) -> Visitor:
    """Return what a request shows: the URL goes before the header, the header before the cookie."""
    in_url, query = _split_query(scope["query_string"])
    if in_url is not None:
        return Visitor(in_url, Shown.URL, query)
    if (in_header := headers.get(TOKEN_HEADER)) is not None:
        return Visitor(_bounded(in_header), Shown.HEADER, query)
    in_cookie = _first_cookie(headers.get("cookie", ""), _cookie_name(is_tls=is_tls))
    if in_cookie and is_own_request(scope, headers):
        return Visitor(_bounded(in_cookie), Shown.COOKIE, query)
    return Visitor(None, Shown.NOWHERE, query)


def is_own_request(scope: Scope, headers: Headers) -> bool:
    """Return whether a page of the port itself sent a request, or a browser opens it as a page."""
    # A WebSocket has a method only for the access log, and may change whatever its messages do.
    is_safe = scope["type"] == "http" and scope["method"] in SAFE_METHODS
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        is_opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site == "same-origin" or (is_safe and (site == "none" or is_opened))
    if origin is None:
        return is_safe
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def give_cookie(response: Response, token: str, expires_at: datetime | None, *, is_tls: bool) -> None:
    """Give the browser the cookie for the port's host; without `expires_at`, for as long as the browser runs."""
    seconds = None if expires_at is None else max(0, int((expires_at - datetime.now(UTC)).total_seconds()))
    name = _cookie_name(is_tls=is_tls)
    response.set_cookie(name, token, max_age=seconds, path="/", secure=is_tls, httponly=True, samesite="lax")


def _cookie_name(*, is_tls: bool) -> str:
    return f"__Host-{_COOKIE}" if is_tls else _COOKIE


def _first_cookie(cookies: str, name: str) -> str | None:
    """Return the value of the first cookie of this name: without TLS, a page of another sandbox can add later ones."""
    pairs = (each.strip().partition("=") for each in cookies.split(";"))
    return next((value for found, _, value in pairs if found == name), None)


def _split_query(query: bytes) -> tuple[str | None, bytes]:
    """Return the token in a query, and the query without it."""
    if PARAMETER not in query:
        return None, query
    token, kept = None, []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name != PARAMETER:
            kept.append(part)
        elif token is None:
            token = unquote_to_bytes(value).decode("latin-1")
    return None if token is None else _bounded(token), b"&".join(kept)


def _bounded(token: str) -> str:
    return token[:_MAX_CHARACTERS]
