"""Every route against every scope and role: the table is made of the application's own routes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from belljar.control.api.app import create_app
from belljar.control.api.auth_middleware import PUBLIC_FOLDER, PUBLIC_PATHS
from belljar.control.api.rules import require, ruled_routes
from belljar.control.projects.scopes import ALL_SCOPES, ROLE_SCOPES, Role, Scope, granted
from support.served import Served

#: Which scopes the routes below a path may require; a route elsewhere may require any.
SCOPES_BELOW = {
    "/v1/jobs": {Scope.JOBS_RUN, Scope.JOBS_READ},
    "/v1/scripts": {Scope.SCRIPTS_WRITE, Scope.SCRIPTS_READ, Scope.JOBS_RUN},
    "/v1/images": {Scope.IMAGES_WRITE, Scope.IMAGES_READ},
    "/v1/sandboxes": {Scope.SANDBOXES},
    "/v1/services": {Scope.SERVICES},
    "/v1/secrets": {Scope.SECRETS_WRITE, Scope.SECRETS_READ},
    "/v1/keys": {Scope.PROJECT_ADMIN},
    "/v1/projects": {Scope.PROJECT_ADMIN, Scope.USAGE_READ, Scope.ADMIN},
    "/v1/nodes": {Scope.ADMIN},
    "/metrics": {Scope.ADMIN},
}


#: Routes that change only what is the caller's own: its sessions.
OWN = {"/signin", "/signout", "/account/project", "/account/sessions/x/end", "/v1/sessions/x"}


def routes() -> Iterator[tuple[str, str, Scope | None]]:
    """Yield method, path and scope of every route."""
    for route in ruled_routes(create_app(None)):
        for method in sorted(route.methods):
            yield method, re.sub(r"\{[^}]*\}", "x", route.path), route.scope


def grants() -> Iterator[tuple[str, Role | None, frozenset[Scope]]]:
    """Yield every key to try: one without any scope, one for each scope alone, and one for each role."""
    yield "nothing", None, frozenset()
    for scope in Scope:
        yield scope.value, None, frozenset({scope})
    for role in Role:
        yield f"role {role}", role, frozenset()


@pytest.fixture
async def callers(api: Served) -> dict[str, httpx.AsyncClient]:
    found = {}
    for name, role, scopes in grants():
        _, secret = await api.services.keys.create("tenant", "test", role=role, scopes=scopes)
        found[name] = api.caller(secret)
    return found


async def test_a_route_takes_exactly_the_keys_that_its_rule_allows(
    callers: dict[str, httpx.AsyncClient],
) -> None:
    wrong = []
    for method, path, scope in routes():
        for name, role, scopes in grants():
            response = await callers[name].request(method, path)
            refused = response.status_code == 403 and "requires" in response.json()["detail"]
            allowed = scope is None or scope in granted(role, scopes)
            if refused == allowed or response.status_code == 401:
                wrong.append(f"{method} {path} with {name}: {response.status_code}")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_operation_of_the_description_and_only_public_paths_have_no_scope() -> None:
    app = create_app(None)
    described = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    ruled = {(method, route.path) for route in ruled_routes(app) for method in route.methods}
    pages = {(method, route.path) for route in ruled_routes(app) for method in route.methods if not route.is_described}
    assert ruled - pages == described
    assert not described & pages
    assert len(ruled) >= 20
    assert {route.path for route in ruled_routes(app) if route.is_public} == {*PUBLIC_PATHS, f"{PUBLIC_FOLDER}{{name}}"}
    assert not {route.path for route in ruled_routes(app) if route.is_public and route.scope is not None}


def test_a_rule_fits_its_path_and_no_scope_to_read_allows_a_change() -> None:
    for method, path, scope in routes():
        prefix = next((each for each in SCOPES_BELOW if f"{path}/".startswith(f"{each}/")), None)
        if prefix is not None:
            assert scope in SCOPES_BELOW[prefix], f"{method} {path} requires {scope}"
        if method != "GET" and path not in OWN:
            assert scope is not None and not scope.endswith(":read"), f"{method} {path} requires {scope}"


def test_an_application_with_a_route_without_one_rule_does_not_start() -> None:
    for dependencies in ([], [require(Scope.JOBS_READ), require(Scope.JOBS_RUN)]):
        app = FastAPI()
        app.get("/x", dependencies=dependencies)(lambda: None)
        with pytest.raises(TypeError, match="needs one rule"):
            ruled_routes(app)


def test_roles_contain_each_other_and_none_is_an_operator() -> None:
    viewer, member, owner = ROLE_SCOPES[Role.VIEWER], ROLE_SCOPES[Role.MEMBER], ROLE_SCOPES[Role.OWNER]
    assert viewer < member < owner < ALL_SCOPES
    assert not {scope for scope in viewer if scope.endswith(("write", "run", "admin"))}
    assert Scope.ADMIN not in owner and Scope.IMAGES_WRITE not in owner
    assert granted(None, [Scope.ADMIN]) == ALL_SCOPES
    assert granted(Role.VIEWER, [Scope.JOBS_RUN]) == viewer | {Scope.JOBS_RUN}
