"""Sign-in by OpenID Connect at a real provider: the whole flow, and everything that must not pass for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from belljar.control.openid.attempt import MAX_SECONDS, Attempt
from belljar.model.errors import SignInFailed
from support.browser import Browser
from support.openid_provider import ALICE, CLIENT, SECRET, TestProvider, openid_provider
from support.served import URL, Served, problem, served

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def running() -> Iterator[TestProvider]:
    with openid_provider() as provider:
        yield provider


@pytest.fixture
def provider(running: TestProvider) -> TestProvider:
    running.control(account=ALICE, tamper=None)
    return running


def secret_file(folder: Path, secret: str = SECRET) -> Path:
    path = folder / "oidc.secret"
    path.touch(0o600)
    path.write_text(secret + "\n")
    return path


def settings_for(provider: TestProvider, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "public_url": URL,
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT,
        "oidc_client_secret_file": secret_file(folder),
        "oidc_name": "the <tests>",
        **more,
    }


@pytest.fixture
async def openid(provider: TestProvider, tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, **settings_for(provider, tmp_path)) as api:
        await api.http.put("/v1/projects/default/members/alice@example.com", json={"role": "member"})
        yield api


@pytest.fixture
async def browser(openid: Served) -> AsyncIterator[Browser]:
    async with Browser(openid) as browser:
        yield browser


async def assert_refused(response: httpx.Response, api: Served, browser: Browser, reason: str) -> None:
    assert response.status_code == 403 and reason in response.text, response.text
    assert browser.cookie is None
    people = (await api.http.get("/v1/projects/default/members")).json()["members"]
    assert people[0]["person_id"] is None


async def test_an_invited_person_signs_in_and_out(openid: Served, provider: TestProvider, browser: Browser) -> None:
    assert "Sign in with the &lt;tests&gt;" in (await browser.get("/signin")).text
    response = await provider.sign_in(browser, next="/account?tab=1")
    assert (response.status_code, response.headers["location"]) == (303, "/account?tab=1")
    session = (await browser.http.get("/v1/session")).json()
    assert (session["kind"], session["name"], session["project"]) == ("person", "alice@example.com", "default")
    assert session["roles"] == {"default": "member"} and not session["operator"]
    member = (await openid.http.get("/v1/projects/default/members")).json()["members"][0]
    assert (member["person_id"], member["name"]) == (session["id"], "Alice")
    audit = (await openid.http.get("/v1/audit")).json()["audit"]
    entry = next(each for each in audit if each["action"] == "session.start")
    assert entry["actor"]["name"] == "alice@example.com", entry
    await browser.send("/signout", {"form_token": await browser.form_token()})
    problem(await browser.http.get("/v1/session"), 401, "not_authenticated")
    assert (await provider.sign_in(browser)).status_code == 303  # the same person again
    assert (await browser.http.get("/v1/session")).json()["id"] == session["id"]


async def test_the_request_to_the_provider_has_state_nonce_and_pkce(browser: Browser) -> None:
    sent = [httpx.URL((await browser.get("/signin/oidc")).headers["location"]).params for _ in range(2)]
    for params in sent:
        assert params["code_challenge_method"] == "S256" and len(params["code_challenge"]) == 43
        assert params["redirect_uri"] == f"{URL}/signin/oidc/callback" and params["response_type"] == "code"
    for name in ("state", "nonce", "code_challenge"):
        assert sent[0][name] != sent[1][name]


async def test_who_is_in_no_project_gets_no_session_and_is_not_stored(
    openid: Served, provider: TestProvider, browser: Browser
) -> None:
    provider.control(account={**ALICE, "sub": "eve", "email": "eve@example.com"})
    await assert_refused(await provider.sign_in(browser), openid, browser, "no project has invited eve@example.com")
    assert b"eve@example.com" not in (openid.services.settings.data_dir / "belljar.db").read_bytes()


async def test_operators_are_those_of_the_setting_and_nobody_by_being_first(
    provider: TestProvider, tmp_path: Path
) -> None:
    more = settings_for(provider, tmp_path, oidc_operators=["Alice@example.com"])
    async with served(tmp_path, **more) as api, Browser(api) as alice, Browser(api) as bob:
        await provider.sign_in(alice)
        assert (await alice.http.get("/v1/session")).json()["operator"]
        assert (await alice.http.get("/v1/nodes")).status_code == 200
        await api.http.put("/v1/projects/default/members/bob@example.com", json={"role": "owner"})
        provider.control(account={**ALICE, "sub": "bob", "email": "bob@example.com"})
        await provider.sign_in(bob)
        assert not (await bob.http.get("/v1/session")).json()["operator"]
        problem(await bob.http.get("/v1/nodes"), 403, "forbidden")
        # The address of an operator counts only if the provider has verified it.
        provider.control(account={**ALICE, "sub": "eve", "email_verified": False})
        async with Browser(api) as eve:
            assert (await provider.sign_in(eve)).status_code == 403 and eve.cookie is None


async def test_an_address_that_is_not_verified_counts_for_nothing(
    openid: Served, provider: TestProvider, browser: Browser
) -> None:
    for verified in (False, None, "false", 1, "yes"):
        provider.control(account={**ALICE, "email_verified": verified})
        await assert_refused(await provider.sign_in(browser), openid, browser, "not verified")
    provider.control(account={name: value for name, value in ALICE.items() if name != "email_verified"})
    await assert_refused(await provider.sign_in(browser), openid, browser, "not verified")
    provider.control(account={**ALICE, "email_verified": "true"})
    assert (await provider.sign_in(browser)).status_code == 303


NOW = int(time.time())
TAMPERED: dict[str, dict[str, Any]] = {
    "another audience": {"claims": {"aud": "other"}},
    "several audiences, for another party": {"claims": {"aud": [CLIENT, "other"], "azp": "other"}},
    "several audiences, for no party": {"claims": {"aud": [CLIENT, "other"]}},
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "expired": {"claims": {"exp": NOW - 3600}},
    "expired beyond the clock skew": {"claims": {"exp": NOW - 70}},
    "from the future": {"claims": {"iat": NOW + 3600}},
    "not valid yet": {"claims": {"nbf": NOW + 3600}},
    "of an odd time": {"claims": {"exp": "tomorrow"}},
    "another nonce": {"claims": {"nonce": "x"}},
    "without a nonce": {"remove": ["nonce"]},
    "without an expiry": {"remove": ["exp"]},
    "without an audience": {"remove": ["aud"]},
    "without an issuer": {"remove": ["iss"]},
    "without a subject": {"remove": ["sub"]},
    "a subject that is no text": {"claims": {"sub": 1}},
    "for another access token": {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
    "not signed": {"header": {"alg": "none"}},
    "signed with the client's secret": {"header": {"alg": "HS256"}, "key": "secret"},
    "signed with the public key as a secret": {"header": {"alg": "HS256"}, "key": "public"},
    "signed by another key of the same name": {"key": "foreign"},
    "signed by an unknown key": {"key": "foreign", "header": {"kid": "unknown"}},
    "with a broken signature": {"key": "broken"},
    "with an odd name of a key": {"header": {"kid": "../../etc/passwd"}},
}


async def test_an_id_token_of_another_kind_is_refused(openid: Served, provider: TestProvider, browser: Browser) -> None:
    for kind, tamper in TAMPERED.items():
        provider.control(tamper=tamper)
        response = await provider.sign_in(browser)
        assert response.status_code == 403 and "ID token is not valid" in response.text, kind
        await assert_refused(response, openid, browser, "ID token is not valid")
    provider.control(tamper=None)
    assert (await provider.sign_in(browser)).status_code == 303


async def test_a_clock_that_is_slightly_off_is_no_reason_to_refuse(provider: TestProvider, browser: Browser) -> None:
    now = int(time.time())
    provider.control(tamper={"claims": {"exp": now - 20, "iat": now + 20}})
    assert (await provider.sign_in(browser)).status_code == 303


async def test_the_provider_may_rotate_its_keys(provider: TestProvider, browser: Browser, openid: Served) -> None:
    assert (await provider.sign_in(browser)).status_code == 303
    client: Any = openid.services.openid
    client._provider._keys = client._provider._keys[0], time.monotonic() - 10  # read some seconds ago
    provider.control(rotate=True)
    assert (await provider.sign_in(browser)).status_code == 303
    # Tokens with names of keys that do not exist make nobody read the keys for each of them.
    before = provider.control(tamper={"key": "foreign", "header": {"kid": "unknown"}}).count("/jwks")
    for _ in range(3):
        assert (await provider.sign_in(browser)).status_code == 403
    assert provider.control().count("/jwks") == before


async def test_a_response_is_good_once(openid: Served, provider: TestProvider, browser: Browser) -> None:
    url = await provider.begin(browser)
    begun = dict(browser.http.cookies)
    assert (await provider.finish(browser, url)).status_code == 303
    assert "belljar_sign_in" not in browser.http.cookies
    assert (await provider.finish(browser, url)).status_code == 403
    async with Browser(openid) as thief:  # with everything that the browser had
        thief.http.cookies.update(begun)
        response = await provider.finish(thief, url)
        assert response.status_code == 403 and "code" in response.text and thief.cookie is None


async def test_a_state_starts_one_session_even_if_the_provider_accepts_the_code_twice(
    openid: Served, provider: TestProvider, browser: Browser
) -> None:
    attempt = Attempt.begin("/")
    person = await openid.services.people.sign_in(
        issuer="i", subject="s", email="alice@example.com", name="", is_operator=False
    )
    assert person is not None
    await openid.services.sessions.start_for(person, state=attempt.state, address="", browser="")
    with pytest.raises(SignInFailed, match="completed before"):
        await openid.services.sessions.start_for(person, state=attempt.state, address="", browser="")


async def test_a_response_fits_only_the_browser_that_began(
    openid: Served, provider: TestProvider, browser: Browser
) -> None:
    url = await provider.begin(browser)
    async with Browser(openid) as victim:
        # Without a sign-in of its own, and with another one: nobody can sign somebody else in as themselves.
        await assert_refused(await provider.finish(victim, url), openid, victim, "not begun in this browser")
        await victim.get("/signin/oidc")
        await assert_refused(await provider.finish(victim, url), openid, victim, "belongs to another sign-in")
        # A stolen code with a state of one's own: the code is bound to the verifier of the browser that began.
        stolen = httpx.URL(url).params["code"]
        own = httpx.URL((await victim.get("/signin/oidc")).headers["location"]).params["state"]
        response = await provider.finish(victim, str(httpx.URL(url).copy_merge_params({"state": own, "code": stolen})))
        await assert_refused(response, openid, victim, "refused the sign-in")


async def test_a_changed_response_is_refused(openid: Served, provider: TestProvider, browser: Browser) -> None:
    for change in ({"state": ""}, {"state": "x"}, {"iss": "https://evil.example"}, {"code": "x"}):
        url = httpx.URL(await provider.begin(browser))
        changed = await provider.finish(browser, str(url.copy_merge_params(change)))
        await assert_refused(changed, openid, browser, "sign in again")
        params = {name: value for name, value in url.params.items() if name not in change}
        await assert_refused(
            await provider.finish(browser, str(url.copy_with(params=params))), openid, browser, "again"
        )


async def test_a_refusal_of_the_provider_is_shown_without_its_text(
    openid: Served, provider: TestProvider, browser: Browser
) -> None:
    provider.control(account=None)
    response = await provider.sign_in(browser)
    await assert_refused(response, openid, browser, "access_denied")
    assert "<b>" not in response.text and "no account" not in response.text


@pytest.mark.parametrize("age", [-60, MAX_SECONDS + 1])
def test_a_sign_in_takes_its_time_and_no_longer(age: int) -> None:
    attempt = Attempt.begin("/jobs")
    assert Attempt.of_cookie(attempt.cookie()) == attempt
    old = Attempt(secret=attempt.secret, started_at=attempt.started_at - age, next="/")
    with pytest.raises(SignInFailed, match="10 minutes"):
        Attempt.of_cookie(old.cookie())


@pytest.mark.parametrize("cookie", [None, "", "x", "1.2.3", "1." + "a" * 43 + ".%", "9" * 5000, "1.\u00e9." + "a" * 43])
def test_a_malformed_cookie_begins_nothing(cookie: str | None) -> None:
    with pytest.raises(SignInFailed):
        Attempt.of_cookie(cookie)


def test_the_secret_of_a_sign_in_is_in_nothing_that_leaves_the_browser() -> None:
    attempt = Attempt.begin("/")
    derived = {attempt.state, attempt.nonce, attempt.verifier}
    assert len(derived) == 3 and attempt.secret not in derived and attempt.secret not in repr(attempt)


# --- providers of other kinds ---------------------------------------------------------------------------------------


async def test_an_address_in_userinfo_only_is_found_there(tmp_path: Path) -> None:
    with openid_provider(userinfoOnly=True) as provider:
        provider.control(account=ALICE)
        async with served(tmp_path, **settings_for(provider, tmp_path)) as api, Browser(api) as browser:
            await api.http.put("/v1/projects/default/members/alice@example.com", json={"role": "viewer"})
            assert (await provider.sign_in(browser)).status_code == 303
            assert (await browser.http.get("/v1/session")).json()["name"] == "alice@example.com"


async def test_a_wrong_client_secret_is_the_operators_matter(provider: TestProvider, tmp_path: Path) -> None:
    more = settings_for(provider, tmp_path) | {"oidc_client_secret_file": secret_file(tmp_path, "wrong")}
    async with served(tmp_path, **more) as api, Browser(api) as browser:
        response = await provider.sign_in(browser)
        assert response.status_code == 503 and browser.cookie is None


async def test_a_provider_that_is_gone_leaves_the_sign_in_by_key(tmp_path: Path) -> None:
    gone = TestProvider("http://127.0.0.1:1")
    async with served(tmp_path, **settings_for(gone, tmp_path)) as api, Browser(api) as browser:
        response = await browser.get("/signin/oidc")
        assert response.status_code == 503 and "127.0.0.1:1" in response.text
        _, secret = await api.services.keys.create("default", "x")
        assert (await browser.sign_in(secret)).status_code == 303


async def test_without_a_provider_the_page_offers_none(tmp_path: Path) -> None:
    async with served(tmp_path) as api, Browser(api) as browser:
        assert "/signin/oidc" not in (await browser.get("/signin")).text
        assert (await browser.get("/signin/oidc")).status_code == 404
        problem(await browser.get("/signin/oidc/callback", Accept="*/*"), 404, "not_found")
