"""Tells requests of this server's own pages from those of other sites, which browsers send with the same cookies.

Browsers tell with `Sec-Fetch-Site`, which no page can set, where the server's address is https or this machine; on
others, and older ones, with `Origin`. A request that tells neither and would change something is refused: no browser
sends it.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from belljar.model.errors import CrossSiteRequest

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: Only pages may be opened by a link of another site; the API is for pages of this server.
_API_PATHS = ("/v1/", "/metrics", "/openapi.json")


def check_same_origin(scope: Scope, headers: Headers, public_url: str | None) -> None:
    """Refuse a request that another site's page sent. Raises CrossSiteRequest."""
    # A WebSocket has no method, and may change whatever its messages do.
    is_safe = scope.get("method") in SAFE_METHODS
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        if site == "same-origin" or (site == "none" and is_safe):
            return
        if is_safe and _is_opened_page(scope, headers):
            return
    elif origin is not None:
        scheme = {"ws": "http", "wss": "https"}.get(scope.get("scheme", "http"), scope.get("scheme", "http"))
        if origin in (public_url, f"{scheme}://{headers.get('host', '')}"):
            return
    elif is_safe:
        return
    raise CrossSiteRequest(
        f"a page of {_named(origin)} sent this request; requests with a session's cookie are for pages of this server, "
        "others need the header Authorization: Bearer KEY"
    )


def _is_opened_page(scope: Scope, headers: Headers) -> bool:
    """Return whether the browser opens a page, as for a link, instead of using a response in another page."""
    is_page = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return is_page and not is_api_path(scope["path"])


def is_api_path(path: str) -> bool:
    """Return whether the path is of the API, which is no page."""
    return path.startswith(_API_PATHS)


def _named(origin: str | None) -> str:
    try:
        return repr((urlsplit(origin or "").netloc or "another site")[:80])
    except ValueError:
        return "another site"
