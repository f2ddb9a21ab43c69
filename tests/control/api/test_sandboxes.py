"""Sandboxes over HTTP: their creation, lists, deadlines and ends, and what projects may have of them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import httpx
import pytest

from control.api.sandbox_calls import OneSandbox, SandboxApi
from support.served import Served, problem

pytestmark = pytest.mark.process


async def test_a_created_sandbox_runs_with_the_defaults_and_is_audited(sandboxes: SandboxApi) -> None:
    response = await sandboxes.http.post("/v1/sandboxes", json={"labels": {"for": "test"}})
    assert response.status_code == 201
    created = response.json()
    assert (created["status"], created["project"], created["image"]) == ("running", "tenant", "python")
    assert (created["vcpus"], created["memory_mb"], created["egress"]) == (1, 256, "none")
    lifetime = datetime.fromisoformat(created["expires_at"]) - datetime.fromisoformat(created["created_at"])
    assert 0 <= lifetime.total_seconds() - created["lifetime_seconds"] < 60 and created["lifetime_seconds"] == 3600
    assert (await sandboxes.http.get(f"/v1/sandboxes/{created['id']}")).json() == created
    audit = (await sandboxes.served.http.get("/v1/audit", params={"action": "sandbox.create"})).json()["audit"]
    assert [record["object"] for record in audit] == [created["id"]]


async def test_a_deleted_sandbox_has_ended_and_takes_no_call(sandboxes: SandboxApi, box: OneSandbox) -> None:
    process = sandboxes.node.machines[box.id][1]
    deleted = (await box.http.delete(box.url)).json()
    assert (deleted["status"], deleted["end"]["reason"]) == ("ended", "deleted")
    await asyncio.wait_for(process.wait(), 10)
    assert (await box.http.delete(box.url)).json() == deleted
    for method, path in (
        ("POST", "/exec"),
        ("GET", "/processes"),
        ("GET", "/files/x"),
        ("PUT", "/files/x"),
        ("GET", "/metrics"),
        ("GET", "/ports"),
        ("GET", "/ports/80/"),
    ):
        response = await box.http.request(
            method, box.url + path, json={"command": "true"} if method == "POST" else None
        )
        assert problem(response, 409, "sandbox_ended")["reason"] == "deleted"
    problem(await box.http.post(f"{box.url}/extend", json={"lifetime_seconds": 10}), 409, "sandbox_ended")


async def test_without_a_node_a_sandbox_is_queued_and_takes_no_call(api: Served) -> None:
    async with await api.caller_of("tenant") as http:
        response = await http.post("/v1/sandboxes?wait=0", json={})
        assert (response.status_code, response.json()["status"]) == (202, "creating")
        url = f"/v1/sandboxes/{response.json()['id']}"
        problem(await http.post(f"{url}/exec", json={"command": "true"}), 409, "sandbox_not_ready")
        assert (await http.delete(url)).json()["status"] == "ended"


async def test_a_server_without_a_worker_refuses_a_sandbox_at_once(api: Served) -> None:
    api.services.sandbox_queue.has_node = False
    refused = problem(await api.http.post("/v1/sandboxes", json={}), 501, "no_sandbox_node")
    assert "--no-worker" in refused["detail"]
    assert (await api.http.get("/v1/sandboxes")).json()["sandboxes"] == []


async def test_another_project_sees_no_sandbox(sandboxes: SandboxApi, box: OneSandbox) -> None:
    async with await sandboxes.served.caller_of("other") as other:
        assert (await other.get("/v1/sandboxes")).json()["sandboxes"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/exec"), ("GET", "/files/x"), ("GET", "/ports/1/")):
            body = {"command": "true"} if method == "POST" else None
            problem(await other.request(method, box.url + path, json=body), 404, "not_found")
        assert (await box.http.get(box.url)).json()["status"] == "running"
    problem(await box.http.get("/v1/sandboxes/sb_x"), 404, "not_found")


async def test_lists_are_filtered_and_paged(sandboxes: SandboxApi) -> None:
    made = [(await sandboxes.create(labels={"n": str(number % 2)})).id for number in range(5)]

    async def ids(**params: Any) -> list[str]:
        response = await sandboxes.http.get("/v1/sandboxes", params=params)
        return [each["id"] for each in response.json()["sandboxes"]]

    assert await ids() == made[::-1]
    assert await ids(label="n=1") == [made[3], made[1]]
    await sandboxes.http.delete(f"/v1/sandboxes/{made[0]}")
    assert await ids(status="ended") == [made[0]]
    assert await ids(status="running", label="n=0") == [made[4], made[2]]
    first = (await sandboxes.http.get("/v1/sandboxes", params={"limit": 3})).json()
    rest = (await sandboxes.http.get("/v1/sandboxes", params={"cursor": first["next_cursor"]})).json()
    assert [each["id"] for each in (*first["sandboxes"], *rest["sandboxes"])] == made[::-1]
    assert rest["next_cursor"] is None


async def test_the_same_key_returns_the_same_sandbox(sandboxes: SandboxApi) -> None:
    headers = {"Idempotency-Key": "once"}
    both = await asyncio.gather(
        *(sandboxes.http.post("/v1/sandboxes", json={"env": {"A": "1"}}, headers=headers) for _ in range(4))
    )
    assert {response.json()["id"] for response in both} == {both[0].json()["id"]}
    problem(await sandboxes.http.post("/v1/sandboxes", json={}, headers=headers), 409, "conflict")
    body = {"idempotency_key": "other"}
    problem(await sandboxes.http.post("/v1/sandboxes", json=body, headers=headers), 422, "invalid_option")


async def test_a_lifetime_is_extended_within_the_maximum(box: OneSandbox) -> None:
    extended = (await box.http.post(f"{box.url}/extend", json={"lifetime_seconds": 7200})).json()
    lifetime = datetime.fromisoformat(extended["expires_at"]) - datetime.fromisoformat(extended["created_at"])
    assert 7200 <= lifetime.total_seconds() < 7300
    for seconds in (86_500, 0, -1, "x", None):
        response = await box.http.post(f"{box.url}/extend", json={"lifetime_seconds": seconds})
        problem(response, 422, "invalid_option")


async def test_a_project_has_at_most_so_many_sandboxes(sandboxes: SandboxApi, monkeypatch: pytest.MonkeyPatch) -> None:
    service = sandboxes.served.services.sandboxes
    settings = service._settings.model_copy(update={"max_sandboxes_per_project": 3})
    monkeypatch.setattr(service, "_settings", settings)
    responses = await asyncio.gather(*(sandboxes.http.post("/v1/sandboxes", json={}) for _ in range(8)))
    made = [response for response in responses if response.status_code == 201]
    assert len(made) == 3
    for response in responses:
        if response.status_code != 201:
            assert problem(response, 429, "too_many_sandboxes")["limit"] == 3
    await sandboxes.http.delete(f"/v1/sandboxes/{made[0].json()['id']}")
    assert (await sandboxes.http.post("/v1/sandboxes", json={})).status_code == 201


async def test_quotas_limit_the_sandboxes_of_a_project_and_their_use_of_a_day(sandboxes: SandboxApi) -> None:
    admin, url = sandboxes.served.http, "/v1/projects/tenant/quotas"
    assert (await admin.put(url, json={"max_sandboxes": 2, "max_sandbox_vcpus": 3})).status_code == 200
    first = await sandboxes.create(shape={"vcpus": 2})
    large = problem(await sandboxes.http.post("/v1/sandboxes", json={"shape": {"vcpus": 2}}), 429, "quota_exceeded")
    assert (large["quota"], large["limit"], large["used"]) == ("max_sandbox_vcpus", 3, 2)
    await sandboxes.create()
    third = problem(await sandboxes.http.post("/v1/sandboxes", json={}), 429, "quota_exceeded")
    assert (third["quota"], third["limit"], third["used"]) == ("max_sandboxes", 2, 2) and "end some" in third["detail"]
    usage = (await sandboxes.http.get("/v1/usage")).json()
    shown = {each["quota"]: each["left"] for each in usage["quotas"]}
    assert (shown["max_sandboxes"], shown["max_sandbox_vcpus"]) == (0, 0)
    await sandboxes.http.delete(first.url)
    assert sum(day["vcpu_seconds"] for day in (await sandboxes.http.get("/v1/usage")).json()["days"]) > 0
    assert (await admin.put(url, json={"max_vcpu_seconds_per_day": 0})).status_code == 200
    used_up = problem(await sandboxes.http.post("/v1/sandboxes", json={}), 429, "quota_exceeded")
    assert used_up["quota"] == "max_vcpu_seconds_per_day" and used_up["retry_after"] > 0


async def test_the_metrics_are_what_the_guest_counts(box: OneSandbox) -> None:
    metrics = (await box.http.get(f"{box.url}/metrics")).json()
    assert metrics["uptime_seconds"] >= 0 and "memory_bytes" in metrics


async def test_the_metrics_over_its_life_outlive_it(box: OneSandbox) -> None:
    async with asyncio.timeout(30):
        while not (found := (await box.http.get(f"{box.url}/metrics", params={"series": True})).json())["seconds"]:
            await asyncio.sleep(0.1)
    assert len(found["cpu"]) == len(found["seconds"]) and found["vcpus"] >= 1 and found["disk_bytes"][0] > 0
    await box.http.delete(box.url)
    kept = (await box.http.get(f"{box.url}/metrics", params={"series": True})).json()
    assert kept["seconds"][: len(found["seconds"])] == found["seconds"]
    problem(await box.http.get(f"{box.url}/metrics"), 409, "sandbox_ended")


WRONG_REQUESTS = (
    ({"image": "nothing"}, "unknown_image"),
    ({"template": "nothing"}, "unknown_image"),
    ({"image": "python", "template": "python"}, "invalid_option"),
    ({"shape": {"vcpus": 1000}}, "invalid_option"),
    ({"shape": {"memory_mb": 1}}, "invalid_option"),
    ({"shape": {"unknown": 1}}, "invalid_option"),
    ({"shape": []}, "invalid_option"),
    ({"egress": "evil evil"}, "invalid_option"),
    ({"env": {"A=B": "1"}}, "invalid_option"),
    ({"env": {"A": "x\0"}}, "invalid_option"),
    ({"secrets": ["MISSING"]}, "secret_missing"),
    ({"lifetime_seconds": 1e9}, "invalid_option"),
    ({"lifetime_seconds": 0}, "invalid_option"),
    ({"idle_seconds": -5}, "invalid_option"),
    ({"labels": {"": "x"}}, "invalid_option"),
    ({"idempotency_key": ""}, "invalid_option"),
    ({"public_ports": [0]}, "invalid_option"),
)


async def test_an_invalid_request_is_refused(api: Served) -> None:
    async with await api.caller_of("tenant") as http:
        for body, code in WRONG_REQUESTS:
            response = await http.post("/v1/sandboxes", json=body)
            assert response.status_code == 422, (body, response.text)
            problem(response, 422, code)
        assert (await http.get("/v1/sandboxes")).json()["sandboxes"] == []


async def test_a_key_without_the_scope_may_do_nothing_with_sandboxes(sandboxes: SandboxApi, box: OneSandbox) -> None:
    _, secret = await sandboxes.served.services.keys.create("tenant", "none")
    caller: httpx.AsyncClient
    async with sandboxes.served.caller(secret) as caller:
        problem(await caller.post(f"{box.url}/exec", json={"command": "true"}), 403, "forbidden")
        problem(await caller.get(f"{box.url}/ports/80/"), 403, "forbidden")
