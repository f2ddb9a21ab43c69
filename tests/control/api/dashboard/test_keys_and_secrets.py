"""Pages of keys and secrets: what is shown once, what is never shown, and forms that were refused."""

from __future__ import annotations

import html
import re

from belljar.control.projects.scopes import Role
from belljar.model.secrets import SecretUse
from support.browser import Browser, fields_of
from support.served import Served, problem

_SECRET = re.compile(r"bj_[A-Za-z0-9]{30,}")


async def form(browser: Browser, path: str, **fields: str) -> dict[str, str]:
    """Return the fields of a form with what the page puts into it."""
    given = fields_of(await browser.get(path))
    return {"form_token": given["form_token"], "in_project": given["in_project"], **fields}


async def test_a_new_keys_secret_is_on_one_page_and_works(api: Served, owner: Browser) -> None:
    fields = await form(owner, "/keys", name="ci", role="member", expires_in_seconds="86400")
    page = await owner.send("/keys", fields)
    secret = _SECRET.search(page.text)
    assert page.status_code == 201 and secret is not None
    assert page.headers["cache-control"] == "no-store"
    async with api.caller(secret[0]) as caller:
        session = (await caller.get("/v1/session")).json()
        assert session["project"] == "tenant" and "project:admin" not in session["scopes"]
    listed = await owner.get("/keys")
    assert "ci" in listed.text and secret[0] not in listed.text
    rows = (await api.http.get("/v1/audit", params={"action": "key.create"})).json()["audit"]
    assert (
        rows[0]["project"] == "tenant" and rows[0]["outcome"] == "succeeded" and rows[0]["actor"]["name"] == "browser"
    )


async def test_what_was_typed_stays_beside_what_is_wrong_with_it(owner: Browser) -> None:
    fields = await form(owner, "/keys", name="two words<b>", role="viewer", expires_in_seconds="")
    page = await owner.send("/keys", fields)
    assert page.status_code == 422
    assert 'value="two words&lt;b&gt;"' in page.text and 'aria-invalid="true"' in page.text
    assert '<option value="viewer" selected>' in page.text
    assert _SECRET.search(page.text) is None


async def test_a_key_is_rotated_and_revoked(api: Served, owner: Browser) -> None:
    key, secret = await api.services.keys.create("tenant", "old", role=Role.MEMBER)
    page = await owner.send(f"/keys/{key.id}/rotate", await form(owner, "/keys"))
    fresh = _SECRET.search(page.text)
    assert page.status_code == 201 and fresh is not None and fresh[0] != secret
    assert (await owner.send(f"/keys/{key.id}/revoke", await form(owner, "/keys"))).status_code == 303
    async with api.caller(secret) as caller:
        problem(await caller.get("/v1/session"), 401, "not_authenticated")


async def test_another_projects_key_does_not_exist_and_no_role_is_offered_beyond_ones_own(
    api: Served, owner: Browser
) -> None:
    key, _ = await api.services.keys.create("other", "theirs", role=Role.MEMBER)
    page = await owner.get("/keys")
    assert "theirs" not in page.text and "operator" not in page.text.lower().replace("operator of this server", "")
    assert (await owner.send(f"/keys/{key.id}/revoke", await form(owner, "/keys"))).status_code == 404
    refused = await owner.send("/keys", await form(owner, "/keys", name="x", role="operator"))
    assert refused.status_code == 403 and _SECRET.search(refused.text) is None


async def test_a_secret_is_stored_with_the_ends_of_lines_of_its_file_and_never_shown(
    api: Served, owner: Browser
) -> None:
    fields = await form(owner, "/secrets", name="PEM", value="begin\r\nhidden value\r\n")
    assert (await owner.send("/secrets", fields)).status_code == 303
    opened = await api.services.secrets.open("tenant", [SecretUse(name="PEM")])
    assert opened[0].value.reveal() == b"begin\nhidden value\n"
    page = await owner.get("/secrets")
    assert "PEM" in page.text and "hidden value" not in page.text
    wrong = await owner.send("/secrets", await form(owner, "/secrets", name="no good", value="hidden value"))
    assert wrong.status_code == 422 and "hidden value" not in wrong.text
    assert "no good" in html.unescape(wrong.text) and 'aria-invalid="true"' in wrong.text
    assert (await owner.send("/secrets/remove", await form(owner, "/secrets", name="PEM"))).status_code == 303
    assert "PEM" not in (await owner.get("/secrets")).text


async def test_a_form_that_outlives_its_session_is_kept_but_not_its_secret(api: Served, owner: Browser) -> None:
    fields = await form(owner, "/secrets", name="TOKEN", value="hidden value")
    await owner.send("/signout", {"form_token": fields["form_token"]})
    page = await owner.send("/secrets", fields)
    assert page.status_code == 401 and "TOKEN" in page.text and "hidden value" not in page.text
