"""Names the action of each route that changes something, for the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.types import Scope

Route = TypeVar("Route", bound=Callable[..., Any])

_ATTRIBUTE = "audit_action"
#: Methods that change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def audited(action: str) -> Callable[[Route], Route]:
    """Mark a route's function with the name of its action: `job.submit`. The name never changes."""

    def mark(function: Route) -> Route:
        setattr(function, _ATTRIBUTE, action)
        return function

    return mark


def action_of(endpoint: Callable[..., Any]) -> str | None:
    """Return the name of the action of a route's function; None if it has none."""
    action: str | None = getattr(endpoint, _ATTRIBUTE, None)
    return action


def action_in(scope: Scope) -> str | None:
    """Return the name of the action of a request that was routed; None before, and for an unknown path.

    A route without a name gets that of its function, so that nothing is left out of the log.
    """
    endpoint = scope.get("endpoint")
    if endpoint is None or scope["method"] in SAFE_METHODS:
        return None
    return action_of(endpoint) or str(getattr(endpoint, "__name__", "unknown"))
