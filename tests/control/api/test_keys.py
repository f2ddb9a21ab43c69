"""Keys over HTTP: what they may do, how they end, and attacks with them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import structlog

from belljar.control.projects.key_format import new_secret
from belljar.control.projects.scopes import Role, Scope
from belljar.control.store import keys as key_store
from support.served import Served, problem


async def made(caller: httpx.AsyncClient, **options: Any) -> dict[str, Any]:
    response = await caller.post("/v1/keys", json={"name": "made", **options})
    assert response.status_code == 201, response.text
    return dict(response.json())


async def test_a_key_without_a_role_is_a_members(api: Served) -> None:
    key = await made(api.http)
    assert (key["role"], key["project"], key["admin"], key["expires_at"]) == ("member", "default", False, None)
    async with api.caller(key["secret"]) as member:
        assert (await member.get("/v1/jobs")).status_code == 200
        problem(await member.get("/v1/keys"), 403, "forbidden")


async def test_a_key_has_its_scopes_and_no_others(api: Served) -> None:
    key = await made(api.http, scopes=["jobs:read"])
    assert (key["role"], key["scopes"]) == (None, ["jobs:read"])
    async with api.caller(key["secret"]) as reader:
        assert (await reader.get("/v1/jobs")).status_code == 200
        refused = problem(await reader.get("/v1/scripts"), 403, "forbidden")
        assert "scripts:read" in refused["detail"]
        problem(await reader.post("/v1/jobs", json={"code": "1", "language": "python"}), 403, "forbidden")


async def test_an_owner_creates_lists_and_revokes_the_keys_of_its_project(api: Served) -> None:
    foreign = await made(api.http, project="other")
    async with await api.caller_of("mine") as owner:
        key = await made(owner, role="viewer")
        assert key["project"] == "mine"
        listed = (await owner.get("/v1/keys")).json()["keys"]
        assert [each["name"] for each in listed] == ["test", "made"]
        assert (await owner.delete(f"/v1/keys/{key['id']}")).json()["revoked_at"]
        for method, path in (("DELETE", f"/v1/keys/{foreign['id']}"), ("POST", f"/v1/keys/{foreign['id']}/rotate")):
            problem(await owner.request(method, path), 404, "not_found")
        problem(await owner.post("/v1/keys", json={"name": "x", "project": "other"}), 404, "not_found")
    async with api.caller(foreign["secret"]) as other:
        assert (await other.get("/v1/jobs")).status_code == 200


async def test_operators_keys_do_not_exist_for_others(api: Served) -> None:
    operators = await made(api.http, project="mine", admin=True)
    async with await api.caller_of("mine") as owner:
        assert operators["id"] not in (await owner.get("/v1/keys")).text
        problem(await owner.delete(f"/v1/keys/{operators['id']}"), 404, "not_found")
        problem(await owner.post(f"/v1/keys/{operators['id']}/rotate"), 404, "not_found")


@pytest.mark.parametrize(
    "wanted",
    [
        {"admin": True},
        {"scopes": ["admin"]},
        {"role": "owner"},
        {"role": "member"},
        {"scopes": ["jobs:run"]},
        {"scopes": ["images:write"]},
        {},
    ],
)
async def test_a_key_creates_none_with_more_scopes_than_its_own(api: Served, wanted: dict[str, Any]) -> None:
    _, secret = await api.services.keys.create(
        "mine", "keeper", scopes=frozenset({Scope.PROJECT_ADMIN, Scope.JOBS_READ})
    )
    async with api.caller(secret) as keeper:
        problem(await keeper.post("/v1/keys", json={"name": "x", **wanted}), 403, "forbidden")
        assert (await made(keeper, scopes=["jobs:read"]))["scopes"] == ["jobs:read"]
    assert len(await api.services.keys.list("mine")) == 2


async def test_a_key_neither_rotates_nor_revokes_one_with_more_scopes(api: Served) -> None:
    owner, secret = await api.services.keys.create("mine", "owner", role=Role.OWNER)
    _, keeper_secret = await api.services.keys.create("mine", "keeper", scopes=frozenset({Scope.PROJECT_ADMIN}))
    async with api.caller(keeper_secret) as keeper:
        problem(await keeper.post(f"/v1/keys/{owner.id}/rotate"), 403, "forbidden")
        problem(await keeper.delete(f"/v1/keys/{owner.id}"), 403, "forbidden")
    async with api.caller(secret) as valid:
        assert (await valid.get("/v1/keys")).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
async def test_a_key_is_not_edited(api: Served, method: str) -> None:
    key = await made(api.http, role="viewer")
    changed = await api.http.request(method, f"/v1/keys/{key['id']}", json={"scopes": ["admin"], "admin": True})
    problem(changed, 405, "method_not_allowed")
    assert (await api.services.keys.list())[-1].scopes == set(key["scopes"])


@pytest.mark.parametrize(
    "field",
    [
        {"id": "key_1"},
        {"secret": "bj_x"},
        {"secret_sha256": "0"},
        {"created_at": "2000-01-01T00:00:00Z"},
        {"expires_at": None},
        {"revoked_at": None},
        {"extra_scopes": ["admin"]},
        {"last_used_at": None},
        {"is_operator": True},
    ],
)
async def test_fields_that_a_caller_may_not_set_are_refused(api: Served, field: dict[str, Any]) -> None:
    refused = problem(await api.http.post("/v1/keys", json={"name": "x", **field}), 422, "invalid_option")
    assert refused["option"] == next(iter(field))
    assert len(await api.services.keys.list()) == 1


@pytest.mark.parametrize("name", ["a\nb", "a\r\nlevel=error", "\x1b[31mred", "a\x00", "é", "../x", "a b", "x" * 65, ""])
async def test_names_with_control_characters_are_refused(api: Served, name: str) -> None:
    for body in ({"name": name}, {"name": "x", "project": name}):
        problem(await api.http.post("/v1/keys", json=body), 422, "invalid_option")
    assert len(await api.services.keys.list()) == 1


async def test_what_is_refused_writes_no_control_character_to_the_log(api: Served) -> None:
    forged = "x\n2026-01-01 [info] key_created id=forged"
    with structlog.testing.capture_logs() as log:
        async with api.caller() as caller:
            for headers in ({"Authorization": b"Bearer bj_\x85\x0bx"}, {"Belljar-Project": forged.encode()}):
                await caller.get("/v1/keys", headers=headers)
            await caller.get("/v1/keys/" + quote(forged))
        await api.http.delete("/v1/keys/" + quote(forged))
        await api.http.get("/v1/keys", headers={"Belljar-Project": forged.encode()})
    for event in log:
        for value in event.values():
            assert not isinstance(value, str) or value.isprintable(), event


@pytest.mark.parametrize("guess", ["key_01M8D69FJA8KBNM2PBKYZ3BJNP", "x", "%00", "key_", "..%2fadmin", "a" * 200])
async def test_an_id_of_another_project_is_answered_like_one_that_does_not_exist(api: Served, guess: str) -> None:
    foreign = await made(api.http, project="other")
    async with await api.caller_of("mine") as owner:
        answers = []
        for key_id in (foreign["id"], guess):
            body = problem(await owner.delete(f"/v1/keys/{key_id}"), 404, "not_found")
            answers.append({name: value for name, value in body.items() if name not in ("detail", "request_id")})
        assert answers[0] == answers[1]


async def test_an_expired_key_is_refused_and_says_so(api: Served) -> None:
    key, secret = await api.services.keys.create(
        "mine", "x", role=Role.VIEWER, expires_at=datetime.now(UTC) + timedelta(milliseconds=300)
    )
    async with api.caller(secret) as caller:
        assert (await caller.get("/v1/jobs")).status_code == 200
        waiting = await caller.get(f"/v1/jobs/{(await submitted(api))}", params={"wait": 600})
        problem(waiting, 401, "not_authenticated")  # at its expiry, long before the end of the wait
        assert "expired at" in problem(await caller.get("/v1/jobs"), 401, "not_authenticated")["detail"]
    assert key.expires_at is not None


async def submitted(api: Served) -> str:
    """Submit a job in the project `mine`."""
    async with await api.caller_of("mine") as owner:
        response = await owner.post("/v1/jobs", json={"code": "print(1)", "language": "python"})
    return str(response.json()["id"])


async def test_a_key_does_not_outlive_the_one_that_creates_it(api: Served) -> None:
    _, secret = await api.services.keys.create(
        "mine", "x", role=Role.OWNER, expires_at=datetime.now(UTC) + timedelta(hours=1)
    )
    async with api.caller(secret) as owner:
        for options in ({}, {"expires_in_seconds": 7200}):
            problem(await owner.post("/v1/keys", json={"name": "x", **options}), 422, "invalid_option")
        assert (await made(owner, expires_in_seconds=60))["expires_at"]


async def test_a_rotated_key_has_a_new_secret_and_the_old_one_ends_after_the_overlap(api: Served) -> None:
    old = await made(api.http, role="viewer", expires_in_seconds=86400)
    response = await api.http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_seconds": 60})
    new = response.json()
    assert response.status_code == 201 and new["replaces"] == old["id"]
    same = ("name", "project", "role", "scopes")
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    assert new["secret"] != old["secret"] and new["expires_at"] >= old["expires_at"]
    for secret in (old["secret"], new["secret"]):
        async with api.caller(secret) as caller:
            assert (await caller.get("/v1/jobs")).status_code == 200
    ended = await api.services.keys.get(old["id"])
    assert ended is not None and ended.expires_at is not None
    assert ended.expires_at < datetime.now(UTC) + timedelta(seconds=61)


async def test_without_overlap_the_old_key_ends_at_once_and_is_not_rotated_again(api: Served) -> None:
    old = await made(api.http)
    assert (await api.http.post(f"/v1/keys/{old['id']}/rotate", json={"overlap_seconds": 0})).status_code == 201
    async with api.caller(old["secret"]) as caller:
        problem(await caller.get("/v1/jobs"), 401, "not_authenticated")
    problem(await api.http.post(f"/v1/keys/{old['id']}/rotate"), 409, "key_conflict")
    for body in ({"overlap_seconds": -1}, {"overlap_seconds": 10**9}, {"x": 1}):
        problem(await api.http.post(f"/v1/keys/{old['id']}/rotate", json=body), 422, "invalid_option")


@pytest.mark.parametrize("query", ["key={}", "x=1&api_key={}", "a=%62j_{}", "{}", "q=see+{}+there"])
async def test_a_key_in_the_url_is_refused_even_beside_a_valid_header(api: Served, query: str) -> None:
    key = await made(api.http)
    secret = key["secret"].removeprefix("bj_") if "%62j_" in query else key["secret"]
    for caller in (api.http, api.caller()):
        refused = problem(await caller.get(f"/v1/jobs?{query.format(secret)}"), 401, "key_in_url")
        assert "revoke that key" in refused["detail"] and secret not in json.dumps(refused)


async def test_keys_of_earlier_releases_are_refused_in_the_url_and_others_pass(api: Served) -> None:
    earlier = "bj_" + "aB-_" * 10 + "xyz"
    problem(await api.http.get("/v1/jobs", params={"label": earlier}), 401, "key_in_url")
    assert (await api.http.get("/v1/jobs", params={"label": "bj_short=x%"})).status_code == 200


async def test_a_secret_in_a_path_is_neither_answered_nor_logged(api: Served) -> None:
    secret = (await made(api.http))["secret"]
    with structlog.testing.capture_logs() as log:
        refused = problem(await api.http.delete(f"/v1/keys/{secret}"), 404, "not_found")
    assert "not its id" in refused["detail"] and secret not in str(log) + str(refused)
    assert [event["path"] for event in log if event["event"] == "request_served"] == ["/v1/keys/bj_HIDDEN"]


async def test_pages_of_keys_have_all_of_them_once(api: Served) -> None:
    for number in range(5):
        await api.services.keys.create("mine", f"k{number}", role=Role.VIEWER)
    async with await api.caller_of("mine") as owner:
        names: list[str] = []
        cursor = None
        while True:
            query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
            page = (await owner.get("/v1/keys", params=query)).json()
            names += [key["name"] for key in page["keys"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert names == ["k0", "k1", "k2", "k3", "k4", "test"]


async def test_the_last_word_on_a_secret_is_a_comparison_in_constant_time(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index finds a row by the digest of the secret; what accepts it is hmac.compare_digest of two digests."""
    _, secret = await api.services.keys.create("mine", "x", role=Role.VIEWER)
    compared = []

    def refuse(found: str, expected: str) -> bool:
        compared.append((found, expected))
        return False

    monkeypatch.setattr(key_store.hmac, "compare_digest", refuse)
    async with api.caller(secret) as caller:
        problem(await caller.get("/v1/jobs"), 401, "not_authenticated")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    assert compared == [(digest, digest)]


async def test_an_unknown_whole_key_is_answered_without_its_text(api: Served) -> None:
    secret = new_secret()
    async with api.caller(secret) as caller:
        response = await caller.get("/v1/jobs")
    assert secret not in response.text
    assert "unknown" in problem(response, 401, "not_authenticated")["detail"]
