"""What requests leave in the audit log, and who may read it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from typing import Any

import httpx
import pytest
import structlog
from fastapi.routing import APIRoute, iter_route_contexts

from belljar.control.api.app import create_app
from belljar.control.api.audited import SAFE_METHODS, action_of
from belljar.control.audit.entry import Point
from belljar.control.audit.verify import verify
from support.served import Served, problem


async def records(api: Served, **filters: Any) -> list[dict[str, Any]]:
    """The records, oldest first, without those of the fixture itself."""
    response = await api.http.get("/v1/audit", params={"limit": 500, **filters})
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["audit"]
    return found[::-1]


async def actions(api: Served, **filters: Any) -> list[tuple[str, str, str]]:
    found = await records(api, **filters)
    return [(record["action"], record["object"], record["outcome"]) for record in found]


# --- the routes -----------------------------------------------------------------------------------------------------


def test_every_route_that_changes_something_names_its_action() -> None:
    routes = [context.original_route for context in iter_route_contexts(create_app(None).routes)]
    changing = [route for route in routes if isinstance(route, APIRoute) and route.methods - SAFE_METHODS]
    assert len(changing) >= 7
    nameless = [f"{route.methods} {route.path}" for route in changing if action_of(route.endpoint) is None]
    assert not nameless, "mark these with @audited(…), and record the change in its transaction (record_change)"
    for route in changing:
        name = str(action_of(route.endpoint))
        kind, _, verb = name.partition(".")
        assert kind.isidentifier() and verb.isidentifier(), name


async def test_each_change_is_recorded_with_its_object(api: Served) -> None:
    script_id = await api.upload()
    job = (await api.http.post("/v1/jobs", json={"script_id": script_id})).json()
    run = (await api.http.post(f"/v1/scripts/{script_id}/run")).json()
    await api.http.post(f"/v1/jobs/{run['id']}/cancel")
    key = (await api.http.post("/v1/keys", json={"name": "ci", "project": "other"})).json()
    await api.http.delete(f"/v1/keys/{key['id']}")
    await api.http.delete(f"/v1/scripts/{script_id}")
    await api.http.put("/v1/projects/other/quotas", json={})
    await api.http.patch("/v1/projects/other", json={"suspended": True})
    await api.http.delete("/v1/projects/other")
    await api.http.put("/v1/secrets/TOKEN", json={"value": "MARK-SECRET"})
    await api.http.delete("/v1/secrets/TOKEN")
    assert "MARK" not in json.dumps(await records(api))
    assert (await actions(api))[1:] == [
        ("script.upload", script_id, "succeeded"),
        ("job.submit", job["id"], "succeeded"),
        ("job.submit", run["id"], "succeeded"),
        ("job.cancel", run["id"], "succeeded"),
        ("key.create", key["id"], "succeeded"),
        ("key.revoke", key["id"], "succeeded"),
        ("script.delete", script_id, "succeeded"),
        ("project.set_quotas", "other", "succeeded"),
        ("project.change", "other", "succeeded"),
        ("project.remove", "other", "succeeded"),
        ("secret.set", "TOKEN", "succeeded"),
        ("secret.remove", "TOKEN", "succeeded"),
    ]


async def test_a_record_says_who_when_from_where_and_in_which_request(api: Served) -> None:
    response = await api.http.post(
        "/v1/jobs", json={"code": "print(1)", "language": "python"}, headers={"X-Request-Id": "mine-1"}
    )
    record = (await records(api, action="job.submit"))[0]
    admin = (await records(api, action="key.create"))[0]
    assert admin["actor"] == {"kind": "system", "id": "belljar", "name": None}
    assert record["actor"] == {"kind": "key", "id": admin["object"], "name": "admin"}
    assert (record["address"], record["request_id"], record["project"]) == ("127.0.0.1", "mine-1", "default")
    assert record["object"] == response.json()["id"]
    assert record["details"] == {"script": response.json()["script_id"]}
    assert record["at"].endswith("Z") and len(record["at"]) == 27


async def test_nothing_that_may_be_secret_is_recorded(api: Served) -> None:
    marks = {"code": "print('MARK-CODE')", "stdin": "MARK-STDIN", "env": {"A": "MARK-ENV"}, "args": ["MARK-ARG"]}
    await api.submit(**marks, labels={"l": "MARK-LABEL"})
    secret = (await api.http.post("/v1/keys", json={"name": "ci"})).json()["secret"]
    problem(await api.http.delete(f"/v1/keys/{secret}"), 404, "not_found")
    await api.caller().get(f"/v1/{'x' * 170}/{secret}")
    await api.caller("bj_MARK-KEY").get("/v1/jobs")
    await api.http.post("/v1/keys?token=MARK-QUERY", json={"name": "MARK-\u0007"})
    text = json.dumps(await records(api))
    assert "MARK" not in text
    assert secret[:20] not in text
    assert "bj_HIDDEN" in text


async def test_a_repeated_request_that_changes_nothing_is_recorded_once(api: Served) -> None:
    for _ in range(3):
        await api.submit(idempotency_key="once")
        await api.upload("print(2)")
    assert [action for action, _, _ in await actions(api)][1:] == ["job.submit", "script.upload"]


async def test_a_change_that_is_rolled_back_leaves_no_record_of_success(api: Served) -> None:
    with contextlib.closing(sqlite3.connect(api.services.settings.paths.database)) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    response = await api.http.post("/v1/jobs", json={"code": "print(1)", "language": "python"})
    assert response.status_code == 503 or response.status_code == 500, response.text
    with contextlib.closing(sqlite3.connect(api.services.settings.paths.database)) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
        connection.execute("DROP TRIGGER full")
    assert (await actions(api, action="job.submit")) == [("job.submit", None, "failed")]


# --- refusals -------------------------------------------------------------------------------------------------------


async def test_requests_without_a_valid_key_are_counted(api: Served) -> None:
    caller = api.caller("bj_wrong")
    statuses = [(await caller.post("/v1/jobs", json={})).status_code for _ in range(20)]
    assert set(statuses) == {401, 429}
    found = await records(api, action="access.refuse")
    assert [record["details"]["status"] for record in found] == [401, 429]
    assert found[0]["actor"] == {"kind": "anonymous", "id": None, "name": None}
    assert found[0]["details"] == {"status": 401, "code": "not_authenticated", "method": "POST", "path": "/v1/jobs"}
    await api.services.auditor.flush(all_counts=True)
    counts = [record["details"].get("count") for record in await records(api, action="access.refuse")]
    assert counts == [None, None, statuses.count(401) - 1, statuses.count(429) - 1]


async def test_a_forbidden_request_is_recorded_with_its_key_and_action(api: Served) -> None:
    caller = await api.caller_of("tenant")
    problem(await caller.post("/v1/keys", json={"name": "mine", "admin": True}), 403, "forbidden")
    problem(await caller.get("/v1/nodes"), 403, "forbidden")
    found = [record for record in await records(api, project="tenant") if record["outcome"] == "refused"]
    assert [(record["action"], record["details"]["status"]) for record in found] == [
        ("key.create", 403),
        ("access.refuse", 403),
    ]
    assert {record["actor"]["name"] for record in found} == {"test"}
    assert found[1]["details"]["path"] == "/v1/nodes"


async def test_a_guessed_id_is_recorded(api: Served) -> None:
    caller = await api.caller_of("tenant")
    job = await api.submit()
    problem(await caller.post(f"/v1/jobs/{job['id']}/cancel"), 404, "not_found")
    (found,) = await records(api, action="job.cancel")
    assert (found["object"], found["project"], found["outcome"]) == (job["id"], "tenant", "refused")


async def test_reading_malformed_and_unknown_requests_are_not_recorded(api: Served) -> None:
    await api.http.get("/v1/jobs")
    await api.http.post("/v1/jobs", json={"nothing": 1})
    await api.http.post("/v1/jobs", content=b"{")
    await api.http.post("/v1/none")
    await api.http.put("/v1/jobs")
    assert len(await records(api)) == 1


async def test_a_failure_in_a_route_is_recorded(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(api.services.key_service, "revoke", fail)
    with structlog.testing.capture_logs():
        problem(await api.http.delete("/v1/keys/key_1"), 500, "internal_error")
    assert await actions(api, action="key.revoke") == [("key.revoke", "key_1", "failed")]


@pytest.mark.parametrize("name", ["a\nb", "a\r\nSet-Cookie: x", "\x1b[2J", "\u202egnp", "\ud800", "a\0b"])
async def test_control_characters_stay_inside_of_their_value(api: Served, name: str) -> None:
    path = httpx.URL("http://127.0.0.1:8080/v1/keys/").copy_with(
        raw_path=b"/v1/keys/" + b"".join(b"%%%02x" % byte for byte in name.encode("utf-8", "surrogatepass"))
    )
    await api.http.delete(path)
    text = (await api.http.get("/v1/audit", params={"format": "jsonl"})).text
    lines = text.splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))


# --- reading --------------------------------------------------------------------------------------------------------


async def test_pages_and_filters(api: Served) -> None:
    ids = [(await api.submit())["id"] for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        params = {"limit": 3, "action": "job.submit"} | ({"cursor": cursor} if cursor else {})
        page = (await api.http.get("/v1/audit", params=params)).json()
        seen += [record["object"] for record in page["audit"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == ids[::-1]
    at = (await records(api))[4]["at"]
    assert len(await records(api, since=at)) == 4
    assert len(await records(api, until=at)) == 4
    assert len(await records(api, actor="admin")) == 7
    assert await records(api, actor="nobody") == []
    assert await records(api, project="other") == []
    problem(await api.http.get("/v1/audit", params={"cursor": "x"}), 400, "invalid_request")
    problem(await api.http.get("/v1/audit", params={"since": "x"}), 422, "invalid_option")
    problem(await api.http.get("/v1/audit", params={"format": "xml"}), 422, "invalid_option")


async def test_a_project_reads_its_own_records_without_addresses(api: Served) -> None:
    new = {"name": "t", "project": "tenant", "role": "owner"}
    caller = api.caller((await api.http.post("/v1/keys", json=new)).json()["secret"])
    await caller.post("/v1/jobs", json={"code": "print(1)", "language": "python"})
    await api.submit()
    page = (await caller.get("/v1/audit", params={"project": "default"})).json()["audit"]
    assert [record["action"] for record in page] == ["job.submit", "key.create"]
    assert {record["project"] for record in page} == {"tenant"}
    assert not any({"address", "hash", "previous_hash"} & record.keys() for record in page)
    lines = (await caller.get("/v1/audit", params={"format": "jsonl"})).text.splitlines()
    assert [json.loads(line) for line in lines] == page[::-1]
    problem(await caller.get("/v1/audit/head"), 403, "forbidden")


async def test_an_export_can_be_verified(api: Served) -> None:
    await asyncio.gather(*(api.submit() for _ in range(8)))
    ends = (await api.http.get("/v1/audit/head")).json()
    lines = (await api.http.get("/v1/audit", params={"format": "jsonl"})).text.splitlines()
    exported = [json.loads(line) for line in lines]
    anchor, head = (Point(seq=ends[name]["seq"], hash=bytes.fromhex(ends[name]["hash"])) for name in ("anchor", "head"))
    result = verify(anchor, exported, [head])
    assert (result.findings, result.rows, result.head) == ([], 9, head)
    del exported[3]
    assert "row 4 was removed" in verify(anchor, exported, [head]).findings[0]
