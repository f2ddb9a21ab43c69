"""Members of projects: what a person may do, invitations, and what ends with a role."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from belljar.control.projects.people import MemberChange
from belljar.control.projects.scopes import Role
from support.browser import ISSUER, Browser
from support.served import Served, problem, served

PERSON = {"issuer": ISSUER, "subject": "1", "name": "Alice"}


@pytest.fixture
async def browser(api: Served) -> AsyncIterator[Browser]:
    async with Browser(api) as browser:
        yield browser


async def test_a_person_acts_in_one_project_with_the_role_there(api: Served, browser: Browser) -> None:
    await browser.sign_in_as(api, "alice@example.com", {"a-shop": Role.OWNER, "b-shop": Role.VIEWER})
    session = (await browser.http.get("/v1/session")).json()
    assert (session["kind"], session["name"], session["project"]) == ("person", "alice@example.com", "a-shop")
    assert session["roles"] == {"a-shop": "owner", "b-shop": "viewer"} and not session["operator"]
    there, same = {"Belljar-Project": "b-shop"}, {"Sec-Fetch-Site": "same-origin"}
    assert (await browser.http.get("/v1/projects/a-shop/members")).status_code == 200
    problem(await browser.http.get("/v1/projects/b-shop/members"), 404, "not_found")
    problem(await browser.http.get("/v1/projects/b-shop/members", headers=there), 403, "forbidden")
    problem(await browser.http.get("/v1/jobs", headers={"Belljar-Project": "default"}), 404, "not_found")
    assert (await browser.http.get("/v1/jobs", headers=there)).status_code == 200
    body = {"code": "print(1)", "language": "python"}
    problem(await browser.http.post("/v1/jobs", json=body, headers=there | same), 403, "forbidden")
    assert (await browser.http.post("/v1/jobs", json=body, headers=same)).json()["project"] == "a-shop"
    problem(await browser.http.get("/v1/nodes"), 403, "forbidden")


async def test_a_session_creates_no_key_beyond_its_role(api: Served, browser: Browser) -> None:
    await browser.sign_in_as(api, "alice@example.com", {"a-shop": Role.OWNER, "b-shop": Role.MEMBER})
    same = {"Sec-Fetch-Site": "same-origin"}
    made = await browser.http.post("/v1/keys", json={"name": "ci", "role": "owner"}, headers=same)
    assert made.status_code == 201 and made.json()["expires_at"] is None
    for new in ({"admin": True}, {"scopes": ["images:write"]}, {"role": "member", "scopes": ["admin"]}):
        problem(await browser.http.post("/v1/keys", json={"name": "x", **new}, headers=same), 403, "forbidden")
    problem(
        await browser.http.post("/v1/keys", json={"name": "x", "project": "b-shop"}, headers=same), 404, "not_found"
    )
    problem(
        await browser.http.post("/v1/keys", json={"name": "x"}, headers=same | {"Belljar-Project": "b-shop"}),
        403,
        "forbidden",
    )


async def test_a_change_of_the_role_or_a_removal_ends_the_sessions_at_once(api: Served, browser: Browser) -> None:
    email, path = "alice@example.com", "/v1/projects/shop/members/alice@example.com"
    await browser.sign_in_as(api, email, {"shop": Role.OWNER})
    assert (await api.http.put(path, json={"role": "owner"})).status_code == 200  # no change
    assert (await browser.http.get("/v1/session")).status_code == 200
    assert (await api.http.put(path, json={"role": "viewer"})).json()["role"] == "viewer"
    problem(await browser.http.get("/v1/session"), 401, "session_ended")
    await browser.sign_in_as(api, email, {})
    assert (await browser.http.get("/v1/session")).json()["roles"] == {"shop": "viewer"}
    assert (await api.http.delete(path)).json()["role"] == "viewer"
    problem(await browser.http.get("/v1/session"), 401, "session_ended")
    problem(await api.http.delete(path), 404, "not_found")
    assert await api.services.people.sign_in(email=email, is_operator=False, **{**PERSON, "subject": email}) is None


async def test_an_open_wait_ends_with_its_session(api: Served, browser: Browser) -> None:
    await browser.sign_in_as(api, "alice@example.com", {"shop": Role.OWNER})
    body, same = {"code": "print(1)", "language": "python"}, {"Sec-Fetch-Site": "same-origin"}
    job = (await browser.http.post("/v1/jobs", json=body, headers=same)).json()
    waiting = asyncio.create_task(browser.http.get(f"/v1/jobs/{job['id']}", params={"wait": "30"}))
    await asyncio.sleep(0.2)
    await api.http.delete("/v1/projects/shop/members/alice@example.com")
    async with asyncio.timeout(10):
        problem(await waiting, 401, "session_ended")


async def test_an_invitation_is_claimed_once_and_then_the_address_does_not_matter(api: Served) -> None:
    people, path = api.services.people, "/v1/projects/shop/members/Alice@Example.com"
    await api.services.projects.create("shop")
    invited = (await api.http.put(path, json={"role": "member"})).json()
    assert (invited["email"], invited["person_id"]) == ("alice@example.com", None)
    first = await people.sign_in(email="alice@example.com", is_operator=False, **PERSON)
    assert first is not None
    # Somebody else got the address later, and the first one another.
    other = await people.sign_in(email="alice@example.com", is_operator=False, **{**PERSON, "subject": "2"})
    assert other is None
    assert await people.sign_in(email="alice@other.example", is_operator=False, **PERSON) is not None
    member = (await api.http.get("/v1/projects/shop/members")).json()["members"][0]
    assert (member["person_id"], member["current_email"]) == (first.id, "alice@other.example")
    elsewhere = {**PERSON, "issuer": "https://other.example"}
    assert await people.sign_in(email="x@example.com", is_operator=False, **elsewhere) is None


@pytest.mark.parametrize(
    "email", ["x", "@", "a@", "@b", "a b@c.d", "a@b@c", "a\n@b.c", "x" * 300 + "@b.c", "<@b.c>", "ä@b.c"]
)
async def test_what_is_no_address_is_not_invited(api: Served, email: str) -> None:
    response = await api.http.put(f"/v1/projects/default/members/{email}".replace("\n", "%0A"), json={"role": "viewer"})
    problem(response, 422, "invalid_option")


async def test_nobody_gives_or_takes_a_role_beyond_their_own_scopes(api: Served) -> None:
    await api.services.projects.create("shop")
    path = "/v1/projects/shop/members/alice@example.com"
    await api.http.put(path, json={"role": "owner"})
    _, secret = await api.services.keys.create("shop", "x", role=Role.VIEWER, scopes=frozenset({"project:admin"}))  # type: ignore[arg-type]
    async with api.caller(secret) as caller, await api.caller_of("other") as stranger:
        for role in ("owner", "member"):
            problem(await caller.put(path.replace("alice", "eve"), json={"role": role}), 403, "forbidden")
        for change in (caller.put(path, json={"role": "viewer"}), caller.delete(path)):
            problem(await change, 403, "forbidden")
        assert (await caller.put(path.replace("alice", "bob"), json={"role": "viewer"})).status_code == 200
        for request in (
            stranger.get("/v1/projects/shop/members"),
            stranger.delete(path),
            stranger.put(path, json={"role": "viewer"}),
        ):
            problem(await request, 404, "not_found")
    problem(await api.http.put(path, json={"role": "admin"}), 422, "invalid_option")
    problem(await api.http.put(path, json={"role": "viewer", "person_id": "x"}), 422, "invalid_option")
    problem(await api.http.put(path.replace("shop", "nothing"), json={"role": "viewer"}), 404, "not_found")


async def test_a_change_by_another_process_is_known_within_the_caches_time(
    api: Served, browser: Browser, tmp_path: Path
) -> None:
    await browser.sign_in_as(api, "alice@example.com", {"default": Role.OWNER})
    assert (await browser.http.get("/v1/session")).status_code == 200
    async with served(tmp_path) as other:
        by: Any = (await other.services.keys.list())[0].identity()
        await other.services.members.set(by, "default", "alice@example.com", MemberChange(role=Role.VIEWER))
        await asyncio.sleep(0.6)
        problem(await browser.http.get("/v1/session"), 401, "session_ended")
