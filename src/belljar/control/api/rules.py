"""Rules: which scope a route requires. Every route has exactly one; the application refuses to start without it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple, cast

from fastapi import Depends, FastAPI
from fastapi.routing import iter_route_contexts
from starlette.requests import HTTPConnection

from belljar.control.projects.identity import Identity, IdentityKind
from belljar.control.projects.scopes import Scope
from belljar.model.errors import Forbidden


class Rule:
    """A dependency that refuses a request whose identity does not have the scope; None: nobody is refused."""

    def __init__(self, scope: Scope | None, *, is_public: bool = False) -> None:
        self.scope = scope
        self.is_public = is_public

    # A coroutine, because FastAPI runs plain functions in threads.
    async def __call__(self, request: HTTPConnection) -> None:
        """Raise Forbidden unless the request's identity has the scope."""
        if self.scope is not None:
            demand(cast(Identity, request.state.identity), self.scope)


def demand(identity: Identity, scope: Scope) -> None:
    """Raise Forbidden unless the identity has the scope: of a route's rule, or of what a request asks for beside it."""
    if identity.may(scope):
        return
    if scope is Scope.ADMIN:
        raise Forbidden("this requires an operator's key, one with the scope admin")
    whose = "role here" if identity.kind is IdentityKind.PERSON else "key"
    raise Forbidden(f"this requires the scope {scope}, which your {whose} does not have")


def require(scope: Scope) -> Any:
    """Return the rule of a route: `@router.get("", dependencies=[require(Scope.JOBS_READ)])`."""
    return Depends(Rule(scope))


def public() -> Any:
    """Return the rule of a route that needs no key. The middleware must also list its path in `PUBLIC_PATHS`."""
    return Depends(Rule(None, is_public=True))


def anyone() -> Any:
    """Return the rule of a route about the caller itself: every key and session has it."""
    return Depends(Rule(None))


class RuledRoute(NamedTuple):
    """A route and the scope that it requires."""

    name: str
    #: As the description has it: without the kinds of its parameters.
    path: str
    methods: frozenset[str]
    #: None: none is needed.
    scope: Scope | None
    #: Whether it needs no key.
    is_public: bool
    #: Whether it is in the description of the API; pages are not.
    is_described: bool


_KIND = re.compile(r":\w+\}")
#: What the framework serves: its own description of the API, to anyone with a key.
_FRAMEWORK_PATHS = frozenset({"/openapi.json"})


def ruled_routes(app: FastAPI) -> list[RuledRoute]:
    """Return every route with its rule. Raises TypeError for a route that does not have exactly one."""
    found = []
    for route in iter_route_contexts(app.routes):
        path, name = _KIND.sub("}", route.path or ""), route.name or ""
        if path in _FRAMEWORK_PATHS:
            continue
        dependencies = getattr(route.original_route, "dependencies", ())
        rules = [each.dependency for each in dependencies if isinstance(each.dependency, Rule)]
        if len(rules) != 1:
            raise TypeError(f"the route {name} ({path}) needs one rule: dependencies=[require(Scope.…)]")
        is_described = bool(getattr(route.original_route, "include_in_schema", True))
        methods = frozenset(route.methods or ())
        found.append(RuledRoute(name, path, methods, rules[0].scope, rules[0].is_public, is_described))
    return found
