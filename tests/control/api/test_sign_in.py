"""Sessions of browsers: sign in with a key, cookies, sign out, other sites' requests, forms of ended sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from belljar.control.projects.key_request import Rotation
from belljar.control.projects.people import SessionOwner
from belljar.control.projects.scopes import Role
from belljar.control.store.people_schema import sessions
from belljar.control.web.forms import local_path
from support.browser import Browser, fields_of
from support.served import Served, problem


@pytest.fixture
async def owner_key(api: Served) -> str:
    _, secret = await api.services.keys.create("shop", "test", role=Role.OWNER)
    return secret


@pytest.fixture
async def browser(api: Served) -> AsyncIterator[Browser]:
    async with Browser(api) as browser:
        yield browser


@pytest.fixture
async def signed_in(browser: Browser, owner_key: str) -> Browser:
    assert (await browser.sign_in(owner_key)).status_code == 303
    return browser


async def age(api: Served, **values: timedelta) -> None:
    """Make every session older."""
    now = datetime.now(UTC)
    changed = sessions.update().values(**{name: now - value for name, value in values.items()})
    await api.services.database.writing(lambda connection: connection.execute(changed))
    api.services.sessions._sessions.forget()


async def test_a_key_is_exchanged_for_a_session_with_the_rights_of_the_key(browser: Browser, owner_key: str) -> None:
    page = await browser.get("/signin")
    assert page.status_code == 200 and "<script" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "same-origin" and page.headers["cache-control"] == "no-store"
    response = await browser.sign_in(owner_key)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie and "Domain" not in cookie
    assert owner_key not in cookie and len(browser.cookie or "") >= 43
    assert (await browser.get("/account")).status_code == 200
    session = (await browser.http.get("/v1/session")).json()
    assert (session["kind"], session["project"], session["operator"]) == ("key", "shop", False)
    assert "project:admin" in session["scopes"]
    assert (await browser.http.get("/v1/jobs")).json()["jobs"] == []
    assert (await browser.http.get("/v1/nodes")).status_code == 403


async def test_under_tls_the_cookie_is_secure_and_bound_to_the_host(api: Served, owner_key: str) -> None:
    async with Browser(api, "https://belljar.example") as browser:
        cookie = (await browser.sign_in(owner_key)).headers["set-cookie"]
        assert cookie.startswith("__Host-belljar_session=") and "Secure" in cookie
        assert (await browser.http.get("/v1/session")).status_code == 200
        # A cookie without the prefix may come from another host of the domain.
        secret, plain = browser.cookie, Browser(api, "https://belljar.example")
        plain.http.cookies.set("belljar_session", str(secret))
        problem(await plain.http.get("/v1/session"), 401, "not_authenticated")


async def test_the_database_has_no_secret_of_a_session(signed_in: Browser, api: Served) -> None:
    files = [path for path in api.services.settings.data_dir.rglob("*") if path.is_file()]
    secret = str(signed_in.cookie).encode()
    assert files and not [path for path in files if secret in path.read_bytes()]


@pytest.mark.parametrize("key", ["", "bj_x", "x" * 5000, "bj_" + "a" * 43, "\0", "' OR 1=1 --"])
async def test_an_invalid_key_starts_no_session(browser: Browser, key: str) -> None:
    response = await browser.sign_in(key)
    assert response.status_code == 401 and 'role="alert"' in response.text
    assert "set-cookie" not in response.headers
    if len(key) > 8:
        assert key not in response.text


async def test_invalid_keys_of_the_form_count_like_those_of_the_header(api: Served, browser: Browser) -> None:
    statuses = [(await browser.sign_in("bj_wrong")).status_code for _ in range(8)]
    assert statuses[0] == 401 and statuses[-1] == 429
    async with api.caller("bj_wrong") as caller:
        problem(await caller.get("/v1/jobs"), 429, "too_many_failures")


async def test_a_stolen_cookie_is_worthless_after_sign_out(api: Served, signed_in: Browser) -> None:
    async with Browser(api) as thief:
        thief.http.cookies.set("belljar_session", str(signed_in.cookie))
        assert (await thief.http.get("/v1/session")).status_code == 200
        response = await signed_in.send("/signout", {"form_token": await signed_in.form_token()})
        assert (response.status_code, response.headers["location"]) == (303, "/signin")
        assert signed_in.cookie is None
        problem(await thief.http.get("/v1/session"), 401, "session_ended")
        page = await thief.get("/account?x=1")
        assert (page.status_code, page.headers["location"]) == (303, "/signin?next=/account%3Fx%3D1")


async def test_a_sign_in_ends_the_session_that_the_browser_had(api: Served, signed_in: Browser, owner_key: str) -> None:
    first = str(signed_in.cookie)
    await signed_in.sign_in(owner_key)
    assert signed_in.cookie != first
    async with Browser(api) as thief:
        thief.http.cookies.set("belljar_session", first)
        problem(await thief.http.get("/v1/session"), 401, "session_ended")


async def test_a_session_ends_when_idle_and_at_its_end(api: Served, signed_in: Browser) -> None:
    await age(api, used_at=timedelta(hours=7))
    assert (await signed_in.http.get("/v1/session")).status_code == 200
    await age(api, used_at=timedelta(hours=9))
    problem(await signed_in.http.get("/v1/session"), 401, "session_ended")
    await age(api, used_at=timedelta(0), expires_at=timedelta(seconds=1))
    problem(await signed_in.http.get("/v1/session"), 401, "session_ended")


async def test_use_keeps_a_session_but_is_not_written_for_every_request(api: Served, signed_in: Browser) -> None:
    await age(api, used_at=timedelta(minutes=5))
    await signed_in.http.get("/v1/session")
    first = (await signed_in.http.get("/v1/sessions")).json()["sessions"][0]["used_at"]
    await signed_in.http.get("/v1/session")
    second = (await signed_in.http.get("/v1/sessions")).json()["sessions"][0]["used_at"]
    assert first == second and datetime.now(UTC) - datetime.fromisoformat(first) < timedelta(minutes=1)


async def test_a_session_ends_with_its_key(api: Served, browser: Browser) -> None:
    key, secret = await api.services.keys.create("shop", "short", role=Role.MEMBER)
    await browser.sign_in(secret)
    assert (await api.http.delete(f"/v1/keys/{key.id}")).status_code == 200
    problem(await browser.http.get("/v1/session"), 401, "session_ended")
    ends = datetime.now(UTC) + timedelta(minutes=3)
    _, secret = await api.services.keys.create("shop", "short", role=Role.MEMBER, expires_at=ends)
    await browser.sign_in(secret)
    assert datetime.fromisoformat((await browser.http.get("/v1/session")).json()["session"]["expires_at"]) <= ends


async def test_a_rotated_key_takes_its_sessions_along(api: Served, browser: Browser) -> None:
    key, secret = await api.services.keys.create("shop", "x", role=Role.MEMBER)
    await browser.sign_in(secret)
    assert (await api.http.post(f"/v1/keys/{key.id}/rotate", json=Rotation(overlap_seconds=0).model_dump())).is_success
    problem(await browser.http.get("/v1/session"), 401, "session_ended")


async def test_a_suspended_project_is_closed_to_sessions_too(api: Served, signed_in: Browser) -> None:
    await api.http.patch("/v1/projects/shop", json={"suspended": True})
    problem(await signed_in.http.get("/v1/session"), 403, "project_suspended")
    await api.http.patch("/v1/projects/shop", json={"suspended": False})
    assert (await signed_in.http.get("/v1/session")).status_code == 200


async def test_own_sessions_are_listed_and_ended_those_of_others_do_not_exist(
    api: Served, signed_in: Browser, owner_key: str
) -> None:
    async with Browser(api) as other, await api.caller_of("other") as stranger:
        await other.sign_in(owner_key)
        listed = (await signed_in.http.get("/v1/sessions")).json()["sessions"]
        assert len(listed) == 2 and "secret" not in str(listed) and listed[0]["address"]
        problem(await stranger.delete(f"/v1/sessions/{listed[0]['id']}"), 404, "not_found")
        token = await signed_in.form_token()
        response = await signed_in.send(f"/account/sessions/{listed[0]['id']}/end", {"form_token": token})
        assert response.status_code == 303
        problem(await other.http.get("/v1/session"), 401, "session_ended")
        assert len((await signed_in.http.get("/v1/sessions")).json()["sessions"]) == 1
        assert (await api.http.delete(f"/v1/sessions/{listed[1]['id']}")).status_code == 204
        problem(await signed_in.http.get("/v1/session"), 401, "session_ended")


async def test_the_oldest_session_ends_for_one_too_many(api: Served, signed_in: Browser) -> None:
    key = (await signed_in.http.get("/v1/session")).json()["id"]
    store = api.services.sessions._sessions
    ended = []
    for _ in range(50):
        ended += (await store.start(SessionOwner(key_id=key), datetime.now(UTC) + timedelta(hours=1)))[2]
    assert len(ended) == 1
    problem(await signed_in.http.get("/v1/session"), 401, "session_ended")


async def test_browsers_get_pages_and_programs_get_problems(api: Served, browser: Browser, owner_key: str) -> None:
    opened = await browser.get("/")
    assert (opened.status_code, opened.headers["location"]) == (303, "/signin?next=/")
    problem(await browser.get("/", Accept="application/json"), 401, "not_authenticated")
    await browser.sign_in(owner_key)
    assert (await browser.get("/")).status_code == 200
    page = await browser.get("/<b>nothing")
    assert page.status_code == 404 and "<h1>Not Found" in page.text and "<b>" not in page.text
    problem(await browser.get("/nothing", Accept="application/json"), 404, "not_found")
    problem(await browser.get("/v1/nothing"), 404, "not_found")  # the API has no pages


# --- requests of other sites ----------------------------------------------------------------------------------------

FOREIGN: list[dict[str, str]] = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "", "Origin": "null"},
    {"Sec-Fetch-Site": "", "Origin": "http://127.0.0.1:8081"},
    {"Sec-Fetch-Site": "", "Origin": "https://127.0.0.1:8080"},
    {"Sec-Fetch-Site": "", "Origin": ""},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"},
]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_no_other_site_changes_anything_with_the_cookie(
    signed_in: Browser, owner_key: str, headers: dict[str, str]
) -> None:
    before, token = str(signed_in.cookie), await signed_in.form_token()
    for path, fields in (("/signout", {"form_token": token}), ("/signin", {"key": owner_key})):
        assert (await signed_in.send(path, fields, Accept="*/*", **headers)).status_code == 403
    sent = {name: value for name, value in headers.items() if value}
    for method, path in (("POST", "/v1/jobs"), ("DELETE", "/v1/scripts/x"), ("POST", "/v1/keys")):
        problem(await signed_in.http.request(method, path, json={"name": "x"}, headers=sent), 403, "cross_site_request")
    assert signed_in.cookie == before and (await signed_in.http.get("/v1/keys")).json()["keys"][1:] == []


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}])
async def test_no_other_site_reads_the_api_with_the_cookie(signed_in: Browser, headers: dict[str, str]) -> None:
    for more in ({}, {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}):
        problem(await signed_in.http.get("/v1/jobs", headers=headers | more), 403, "cross_site_request")
    opened = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await signed_in.get("/account", **opened)).status_code == 200  # a link from elsewhere


async def test_pages_of_the_server_use_the_api_with_the_cookie(signed_in: Browser) -> None:
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://127.0.0.1:8080"}):
        made = await signed_in.http.post("/v1/keys", json={"name": "ci", "role": "member"}, headers=headers)
        assert made.status_code == 201, made.text


async def test_a_key_in_the_header_goes_before_the_cookie(api: Served, signed_in: Browser) -> None:
    headers = {"Authorization": "Bearer bj_wrong"}
    problem(await signed_in.http.get("/v1/session", headers=headers), 401, "not_authenticated")
    _, viewer = await api.services.keys.create("shop", "v", role=Role.VIEWER)
    headers = {"Authorization": f"Bearer {viewer}", "Sec-Fetch-Site": "cross-site"}  # CORS has its own setting
    assert (await signed_in.http.get("/v1/session", headers=headers)).json()["session"] is None


# --- forms ----------------------------------------------------------------------------------------------------------


async def test_a_form_without_the_token_of_its_session_is_kept_and_sent_again(
    signed_in: Browser, owner_key: str
) -> None:
    typed = {"note": '</textarea><b>"&\n second', "key": owner_key}
    for token in ({}, {"form_token": "x"}, {"form_token": "é"}):
        page = await signed_in.send("/signout", typed | token)
        assert page.status_code == 403
        fields = fields_of(page)
        assert fields == {"note": typed["note"], "form_token": await signed_in.form_token()}
        assert owner_key not in page.text and "<b>" not in page.text
    assert (await signed_in.send("/signout", fields)).status_code == 303


async def test_a_form_that_outlives_its_session_keeps_what_was_typed(
    api: Served, signed_in: Browser, owner_key: str
) -> None:
    typed = {"form_token": await signed_in.form_token(), "note": "an hour of work"}
    await age(api, used_at=timedelta(days=1))
    page = await signed_in.send("/signout", typed)
    assert page.status_code == 401 and fields_of(page) == {"note": "an hour of work"}
    await signed_in.sign_in(owner_key)  # in another tab
    page = await signed_in.send("/signout", fields_of(page))
    assert page.status_code == 403 and fields_of(page)["note"] == "an hour of work"
    assert (await signed_in.send("/signout", fields_of(page))).status_code == 303
    foreign = await signed_in.send("/signout", typed, **{"Sec-Fetch-Site": "cross-site"})
    assert "an hour of work" not in foreign.text


async def test_oversized_and_malformed_forms_are_refused(signed_in: Browser) -> None:
    assert (await signed_in.send("/signin", {"key": "x" * 70_000}, Accept="*/*")).status_code == 413
    many = {f"f{number}": "" for number in range(200)}
    problem(await signed_in.send("/signin", many, Accept="*/*"), 400, "invalid_request")
    same = {"Sec-Fetch-Site": "same-origin"}
    problem(await signed_in.http.post("/signin", json={"key": "x"}, headers=same), 400, "invalid_request")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/jobs?x=1", "/jobs?x=1"),
        *[(each, "/") for each in ("//evil.example", "/\\evil.example", "https://evil.example", "", "jobs")],
        *[(each, "/") for each in ("/a\r\nSet-Cookie: x=1", "/" + "x" * 600, "/\u2028", "/v1/keys", "/signin")],
    ],
)
async def test_a_sign_in_leads_to_no_other_site(signed_in: Browser, owner_key: str, given: str, path: str) -> None:
    assert local_path(given, "/") == path
    assert (await signed_in.sign_in(owner_key, next=given)).headers["location"] == path
