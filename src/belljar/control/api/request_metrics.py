"""Counts requests for `/metrics`: by route, never by path, which a client chooses."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from belljar.system.counters import increment
from belljar.system.histograms import observe

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_KIND = re.compile(r":\w+\}")
#: The route of a request that was answered before it was routed, or whose path does not exist.
_NO_ROUTE = "none"


def count_request(method: str, route: Any, status: int | None, began_seconds: float | None) -> None:
    """Count a request that has ended. `route` is the framework's; `status` None: the client got no response.

    The time is that until the response began: a followed log may last for hours.
    """
    label, template = request_labels(method, route)
    labels = {"method": label, "route": template}
    increment("belljar_http_requests", status=f"{status // 100}xx" if status else "none", **labels)
    if began_seconds is not None:
        observe("belljar_http_response_seconds", began_seconds, **labels)


def request_labels(method: str, route: Any) -> tuple[str, str]:
    """Return the method and the path template of a request's route, each from a small set."""
    return method if method in _METHODS else "other", _template(getattr(route, "path", None))


@lru_cache(maxsize=1024)
def _template(path: str | None) -> str:
    """Return a route's path as the description of the API has it: without the kinds of its parameters."""
    return _NO_ROUTE if path is None else _KIND.sub("}", path)
