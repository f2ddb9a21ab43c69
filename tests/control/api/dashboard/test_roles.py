"""Every page and form against every role: the table is made of the application's own routes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from belljar.control.api.app import create_app
from belljar.control.api.rules import RuledRoute, ruled_routes
from belljar.control.projects.scopes import ROLE_SCOPES, Role
from belljar.control.web.navigation import GROUPS
from support.browser import Browser
from support.served import Served

_LINK = re.compile(r'href="([^"#?]*)')


def pages(method: str) -> list[RuledRoute]:
    """Return the routes of pages with this method that require something."""
    found = [each for each in ruled_routes(create_app(None)) if not each.is_described and not each.is_public]
    return [each for each in found if method in each.methods and each.scope is not None]


@pytest.fixture
async def people(api: Served) -> AsyncIterator[dict[Role, Browser]]:
    """A browser for each role, with the session of a person."""
    async with AsyncExitStack() as stack:
        found = {}
        for role in Role:
            found[role] = await stack.enter_async_context(Browser(api))
            await found[role].sign_in_as(api, f"{role.value}@example.com", {"tenant": role})
        yield found


def path_of(route: RuledRoute) -> str:
    return re.sub(r"\{[^}]*\}", "1", route.path)


async def test_a_page_opens_for_exactly_the_roles_that_its_rule_allows(people: dict[Role, Browser]) -> None:
    wrong = []
    for route in pages("GET"):
        for role, browser in people.items():
            status = (await browser.get(path_of(route))).status_code
            if (status == 403) == (route.scope in ROLE_SCOPES[role]) or status >= 500:
                wrong.append(f"{route.path} as {role}: {status}")
    assert len(pages("GET")) > 10 and not wrong, "\n".join(wrong)


async def test_a_form_is_refused_to_exactly_the_roles_that_may_not_send_it(people: dict[Role, Browser]) -> None:
    wrong = []
    for role, browser in people.items():
        token = await browser.form_token()
        for route in pages("POST"):
            status = (await browser.send(path_of(route), {"form_token": token})).status_code
            if (status == 403) == (route.scope in ROLE_SCOPES[role]) or status >= 500:
                wrong.append(f"{route.path} as {role}: {status}")
    assert len(pages("POST")) > 10 and not wrong, "\n".join(wrong)


async def test_navigation_and_pages_offer_nothing_that_is_refused(people: dict[Role, Browser]) -> None:
    rules = {route.path: route.scope for route in ruled_routes(create_app(None)) if "GET" in route.methods}
    for role, browser in people.items():
        offered = set()
        for entry in (each for group in GROUPS for each in group):
            if entry.scope is None or entry.scope in ROLE_SCOPES[role]:
                page = await browser.get(entry.path)
                assert page.status_code == 200, entry.path
                offered |= {each for each in _LINK.findall(page.text) if each in rules}
                for action in re.findall(r'action="(/[^"]*)"', page.text):
                    assert _may_send(action, role), f"{entry.path} offers {action} to {role}"
        refused = {path for path in offered if rules[path] is not None and rules[path] not in ROLE_SCOPES[role]}
        assert not refused, f"{role}: {refused}"


def _may_send(action: str, role: Role) -> bool:
    for route in pages("POST"):
        if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", route.path), action):
            return route.scope in ROLE_SCOPES[role]
    return True


async def test_a_form_without_the_sessions_token_changes_nothing(people: dict[Role, Browser], api: Served) -> None:
    owner = people[Role.OWNER]
    for fields in ({}, {"form_token": "wrong"}):
        page = await owner.send("/keys", {"name": "stolen", "role": "member", **fields})
        assert page.status_code == 403
    await owner.send("/keys", {"name": "stolen"}, **{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"})
    assert "stolen" not in (await api.http.get("/v1/keys")).text


async def test_a_form_of_another_project_changes_nothing(people: dict[Role, Browser], api: Served) -> None:
    owner = people[Role.OWNER]
    fields = {"form_token": await owner.form_token(), "in_project": "another", "name": "lost", "role": "member"}
    page = await owner.send("/keys", fields)
    assert page.status_code == 409 and "lost" not in (await api.http.get("/v1/keys")).text
