"""Pauses, resumes, snapshots and forks over HTTP: statuses, errors, quotas and audit, with a node that pretends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from sqlalchemy import BigInteger, type_coerce

from belljar.control.store.metadata import UtcTime
from belljar.control.store.sandbox_tables import sandboxes
from belljar.link.leases import ClaimRequest
from belljar.link.sandboxes import FreezeRequest, SandboxLease, SandboxLink
from belljar.model.errors import DiskFull
from belljar.model.ids import new_id
from belljar.model.sandbox import FrozenState, ResumeProblem
from belljar.model.secrets import SecretValue
from support.link_calls import NODE
from support.sandboxes import claim_sandbox, run_sandbox
from support.served import Served, problem


@dataclass
class Machine:
    """A machine whose frozen copies are only told of."""

    link: SandboxLink
    lease: SandboxLease
    error: Exception | None = None
    frozen: list[FreezeRequest] = field(default_factory=list)

    async def freeze(self, request: FreezeRequest) -> FrozenState:
        self.frozen.append(request)
        if self.error is not None:
            raise self.error
        state = FrozenState(id=request.id, node=NODE.name, stored_bytes=5)
        if request.pause:
            await self.link.sandbox_pausing(self.lease)
            await self.link.sandbox_paused(self.lease, state)
        return state


@dataclass
class Tenant:
    """A project's client, and the node."""

    api: Served
    http: httpx.AsyncClient

    @property
    def link(self) -> SandboxLink:
        return self.api.services.sandbox_queue.link

    async def run_next(self) -> Machine:
        """Have the node claim what waits, and run it."""
        machine = Machine(self.link, (await claim_sandbox(self.link, NODE)).lease)
        await run_sandbox(self.link, machine.lease, machine)
        return machine

    async def running(self, **fields: Any) -> tuple[str, Machine]:
        """A sandbox that runs: its path, and its machine."""
        created = await self.http.post("/v1/sandboxes?wait=0", json=fields)
        assert created.status_code == 202, created.text
        return f"/v1/sandboxes/{created.json()['id']}", await self.run_next()

    async def during(self, url: str, work: Callable[[], Awaitable[object]]) -> httpx.Response:
        """Post, and do what the node does meanwhile once something waits for it."""
        posting = asyncio.create_task(self.http.post(url, timeout=60))
        counted = self.api.services.sandbox_queue.store.counts
        async with asyncio.timeout(30):
            while not {"creating", "resuming"} & {str(status) for status in await counted()}:
                await asyncio.sleep(0.01)
        await work()
        return await posting


@pytest.fixture
async def tenant(api: Served) -> AsyncIterator[Tenant]:
    async with await api.caller_of("tenant") as http:
        yield Tenant(api, http)


async def test_a_paused_sandbox_takes_no_calls_until_it_is_resumed(tenant: Tenant) -> None:
    url, machine = await tenant.running()
    paused = await tenant.http.post(f"{url}/pause")
    assert (paused.status_code, paused.json()["status"]) == (200, "paused")
    assert paused.json()["paused_at"] and paused.json()["frozen"]["id"] == machine.frozen[0].id
    assert (await tenant.http.post(f"{url}/pause")).json() == paused.json()
    assert len(machine.frozen) == 1
    problem(await tenant.http.post(f"{url}/exec", json={"command": "true"}), 409, "sandbox_paused")
    problem(await tenant.http.post(f"{url}/extend", json={"lifetime_seconds": 10}), 409, "sandbox_paused")
    queued = await tenant.http.post(f"{url}/resume?wait=0")
    assert (queued.status_code, queued.json()["status"]) == (202, "resuming")
    await tenant.run_next()
    resumed = await tenant.http.post(f"{url}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (200, "running")
    audit = (await tenant.api.http.get("/v1/audit", params={"project": "tenant"})).json()["audit"]
    actions = [record["action"] for record in audit if record["outcome"] == "succeeded"]
    assert actions.count("sandbox.resume") == 1 and "sandbox.pause" in actions


@pytest.mark.parametrize(
    ("code", "status", "answer"),
    [("no_room", 503, "no_room"), ("snapshot_unusable", 409, "snapshot_unusable"), ("disk_full", 503, "host_error")],
)
async def test_a_resume_that_fails_says_why_and_leaves_it_paused(
    tenant: Tenant, code: str, status: int, answer: str
) -> None:
    url, _ = await tenant.running()
    await tenant.http.post(f"{url}/pause")

    async def refuse() -> None:
        lease = (await claim_sandbox(tenant.link, NODE)).lease
        await tenant.link.sandbox_not_resumed(lease, ResumeProblem(code=code, message="for this reason"))

    refused = problem(await tenant.during(f"{url}/resume", refuse), status, answer)
    assert "for this reason" in refused["detail"]
    found = (await tenant.http.get(url)).json()
    assert (found["status"], found["problem"]["code"]) == ("paused", code)


async def test_without_room_on_the_disk_the_pause_is_refused(tenant: Tenant) -> None:
    url, machine = await tenant.running()
    machine.error = DiskFull("no room for it")
    problem(await tenant.http.post(f"{url}/pause"), 507, "disk_full")
    assert (await tenant.http.get(url)).json()["status"] == "running"


async def test_forks_are_sandboxes_of_their_own_and_refused_whole(tenant: Tenant) -> None:
    url, machine = await tenant.running(labels={"a": "b"}, idle_seconds=50)
    made = await tenant.http.post(f"{url}/fork?wait=0", json={"count": 3, "lifetime_seconds": 100})
    assert made.status_code == 202
    forks = made.json()["sandboxes"]
    assert len({each["id"] for each in forks}) == 3
    for each in forks:
        assert each["parent"] == url.rpartition("/")[2] and each["labels"] == {"a": "b"}
        assert (each["lifetime_seconds"], each["idle_seconds"], each["status"]) == (100, 50, "creating")
        assert each["frozen"]["id"] == machine.frozen[0].id
    assert not machine.frozen[0].pause
    claimed = await claim_sandbox(tenant.link, NODE)
    assert claimed.sandbox.frozen is not None and claimed.sandbox.frozen.id == machine.frozen[0].id

    refused = problem(await tenant.http.post(f"{url}/fork", json={"count": 97}), 429, "too_many_sandboxes")
    assert refused["limit"] == 100 and len(machine.frozen) == 1  # before anything was frozen
    assert len((await tenant.http.get("/v1/sandboxes?limit=200")).json()["sandboxes"]) == 4
    for body in ({"count": 0}, {"count": 101}, {"secrets": "all"}, {"labels": {"/": "x"}}):
        assert (await tenant.http.post(f"{url}/fork", json=body)).status_code == 422


async def test_copies_of_secrets_need_a_word(tenant: Tenant) -> None:
    await tenant.api.services.secrets.set("tenant", "TOKEN", SecretValue(b"value"))
    url, machine = await tenant.running(secrets=["TOKEN"])
    for path in ("snapshot", "fork"):
        assert "TOKEN" in problem(await tenant.http.post(f"{url}/{path}?wait=0"), 409, "secrets_in_memory")["detail"]
        assert machine.frozen == []
    for path in ("snapshot", "fork"):
        assert (await tenant.http.post(f"{url}/{path}?wait=0", json={"secrets": "keep"})).is_success
    assert (await tenant.http.post(f"{url}/pause")).status_code == 200


async def test_sandboxes_are_made_from_snapshots(tenant: Tenant) -> None:
    url, _ = await tenant.running(shape={"memory_mb": 512}, env={"A": "1"})
    made = await tenant.http.post(f"{url}/snapshot")
    assert made.status_code == 201
    snapshot = made.json()
    assert snapshot["id"].startswith("snap_") and (snapshot["memory_mb"], snapshot["image"]) == (512, "python")
    assert (await tenant.http.get("/v1/snapshots")).json() == {"snapshots": [snapshot], "next_cursor": None}
    assert (await tenant.http.get(f"/v1/snapshots/{snapshot['id']}")).json() == snapshot

    body = {"snapshot": snapshot["id"], "env": {"B": "2"}, "labels": {"new": "yes"}}
    created = await tenant.http.post("/v1/sandboxes?wait=0", json=body)
    assert created.status_code == 202, created.text
    box = created.json()
    assert (box["parent"], box["memory_mb"], box["env"]) == (snapshot["id"], 512, {"A": "1", "B": "2"})
    for fixed in ({"image": "python"}, {"shape": {"vcpus": 1}}, {"user": "root"}, {"egress": "open"}):
        assert (await tenant.http.post("/v1/sandboxes", json={**body, **fixed})).status_code == 422
    async with await tenant.api.caller_of("other") as other:
        problem(await other.post("/v1/sandboxes", json=body), 404, "not_found")
        problem(await other.get(f"/v1/snapshots/{snapshot['id']}"), 404, "not_found")
        problem(await other.delete(f"/v1/snapshots/{snapshot['id']}"), 404, "not_found")
        assert (await other.get("/v1/snapshots")).json()["snapshots"] == []
    assert (await tenant.http.delete(f"/v1/snapshots/{snapshot['id']}")).status_code == 204
    problem(await tenant.http.delete(f"/v1/snapshots/{snapshot['id']}"), 404, "not_found")
    problem(await tenant.http.post("/v1/sandboxes", json={**body, "snapshot": new_id("snap")}), 404, "not_found")
    assert (await tenant.http.post("/v1/sandboxes", json={"snapshot": "../x"})).status_code == 422


async def test_a_project_has_so_many_snapshots(tenant: Tenant) -> None:
    url, machine = await tenant.running()
    tenant.api.services.freezing._settings = tenant.api.services.settings.model_copy(
        update={"max_snapshots_per_project": 2}
    )
    for _ in range(2):
        assert (await tenant.http.post(f"{url}/snapshot")).status_code == 201
    problem(await tenant.http.post(f"{url}/snapshot"), 429, "too_many_snapshots")
    assert len(machine.frozen) == 2


async def test_a_paused_sandbox_is_copied_without_a_machine_and_deleted(tenant: Tenant) -> None:
    url, machine = await tenant.running()
    await tenant.http.post(f"{url}/pause")
    assert (await tenant.http.post(f"{url}/snapshot")).json()["id"] == machine.frozen[0].id
    assert (await tenant.http.post(f"{url}/fork?wait=0")).status_code == 202
    assert len(machine.frozen) == 1
    assert (await tenant.http.delete(url)).json()["status"] == "ended"
    for path in ("pause", "resume", "snapshot", "fork"):
        problem(await tenant.http.post(f"{url}/{path}"), 409, "sandbox_ended")
        problem(await tenant.http.post(f"/v1/sandboxes/{new_id('sb')}/{path}"), 404, "not_found")


async def test_a_paused_sandbox_has_one_snapshot_however_often_it_is_asked_for(tenant: Tenant) -> None:
    url, _ = await tenant.running()
    await tenant.http.post(f"{url}/pause")
    made = [await tenant.http.post(f"{url}/snapshot") for _ in range(2)]
    assert [each.status_code for each in made] == [201, 201], made[1].text
    assert made[0].json() == made[1].json()
    assert len((await tenant.http.get("/v1/snapshots")).json()["snapshots"]) == 1


async def test_resumes_at_the_same_time_do_not_exceed_the_quota(tenant: Tenant) -> None:
    boxes = [(await tenant.running())[0] for _ in range(4)]
    for url in boxes:
        assert (await tenant.http.post(f"{url}/pause")).status_code == 200
    await tenant.api.http.patch("/v1/projects/tenant/quotas", json={"max_sandbox_vcpus": 2})
    answers = await asyncio.gather(*(tenant.http.post(f"{url}/resume?wait=0") for url in boxes))
    assert sorted(each.status_code for each in answers) == [202, 202, 429, 429]
    refused = next(each for each in answers if each.status_code == 429)
    assert problem(refused, 429, "quota_exceeded")["quota"] == "max_sandbox_vcpus"
    states = [(await tenant.http.get(url)).json()["status"] for url in boxes]
    assert sorted(states) == ["paused", "paused", "resuming", "resuming"]


async def test_an_egress_policy_that_is_not_allowed_any_more_is_neither_resumed_nor_forked(tenant: Tenant) -> None:
    url, machine = await tenant.running(egress=["example.org"])
    await tenant.api.http.patch("/v1/projects/tenant/quotas", json={"max_egress": "none"})
    problem(await tenant.http.post(f"{url}/fork"), 422, "invalid_option")
    assert machine.frozen == []
    await tenant.http.post(f"{url}/pause")
    refused = problem(await tenant.http.post(f"{url}/resume"), 422, "invalid_option")
    assert refused["option"] == "egress"
    assert (await tenant.http.get(url)).json()["status"] == "paused"


async def test_paused_time_leaves_the_longest_lifetime_whole(tenant: Tenant) -> None:
    url, _ = await tenant.running(lifetime_seconds=600)
    longest = tenant.api.services.settings.max_sandbox_lifetime_seconds
    await tenant.http.post(f"{url}/pause")
    earlier = (sandboxes.c.created_at, sandboxes.c.paused_at)
    moved = {
        column.name: type_coerce(type_coerce(column, BigInteger) - int(2 * longest * 1e6), UtcTime)
        for column in earlier
    }
    database = tenant.api.services.sandbox_queue.store._database
    await database.writing(lambda connection: connection.execute(sandboxes.update().values(moved)))
    await tenant.http.post(f"{url}/resume?wait=0")
    await tenant.run_next()
    resumed = (await tenant.http.get(url)).json()
    assert 2 * longest <= resumed["paused_seconds"] < 2 * longest + 600
    assert (await tenant.http.post(f"{url}/extend", json={"lifetime_seconds": longest / 2})).status_code == 200
    problem(await tenant.http.post(f"{url}/extend", json={"lifetime_seconds": longest}), 422, "invalid_option")


async def test_a_copy_waits_for_room_for_the_memory_that_it_was_made_with_too(tenant: Tenant) -> None:
    url, _ = await tenant.running(shape={"memory_mb": 512})
    await tenant.http.post(f"{url}/fork?wait=0")
    tight = ClaimRequest(vcpus=8, memory_mb=512)
    assert await tenant.link.claim_sandbox(NODE, tight, 0) is None
    copy = await tenant.link.claim_sandbox(NODE, ClaimRequest(vcpus=8, memory_mb=513), 0)
    assert copy is not None and copy.sandbox.needed.memory_mb == 513
    await run_sandbox(tenant.link, copy.lease, Machine(tenant.link, copy.lease))
    await tenant.http.post(f"/v1/sandboxes/{copy.sandbox.id}/pause")
    await tenant.http.post(f"/v1/sandboxes/{copy.sandbox.id}/resume?wait=0")
    again = await tenant.link.claim_sandbox(NODE, tight, 0)  # what is resumed writes to its memory in place
    assert again is not None and again.sandbox.needed.memory_mb == 512
