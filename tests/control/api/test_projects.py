"""Projects over HTTP: created, suspended, resumed and removed by operators; an operator acts in any of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from belljar.control.projects.scopes import Role
from support.served import Served, problem

SUBMISSION = {"code": "print(1)", "language": "python"}


async def submitted(caller: httpx.AsyncClient, **options: Any) -> str:
    response = await caller.post("/v1/jobs", json=SUBMISSION | options)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def test_a_project_is_created_once_and_listed(api: Served) -> None:
    created = await api.http.post("/v1/projects", json={"name": "acme"})
    assert created.status_code == 201
    assert created.json().keys() == {"name", "created_at", "suspended_at", "removed_at"}
    assert (
        "acme" in problem(await api.http.post("/v1/projects", json={"name": "acme"}), 409, "project_conflict")["detail"]
    )
    assert (await api.http.get("/v1/projects/acme")).json() == created.json()
    names = [project["name"] for project in (await api.http.get("/v1/projects")).json()["projects"]]
    assert names == ["acme", "default"]
    page = (await api.http.get("/v1/projects", params={"limit": 1})).json()
    assert page["next_cursor"] == "acme"
    rest = (await api.http.get("/v1/projects", params={"limit": 1, "cursor": "acme"})).json()
    assert ([project["name"] for project in rest["projects"]], rest["next_cursor"]) == (["default"], None)


async def test_the_first_key_of_a_project_creates_it(api: Served) -> None:
    assert (await api.http.post("/v1/keys", json={"name": "x", "project": "fresh"})).status_code == 201
    assert (await api.http.get("/v1/projects/fresh")).status_code == 200


async def test_an_owner_sees_its_own_project_only(api: Served) -> None:
    await api.http.post("/v1/projects", json={"name": "other"})
    async with await api.caller_of("mine") as owner:
        page = (await owner.get("/v1/projects")).json()
        assert [project["name"] for project in page["projects"]] == ["mine"] and page["next_cursor"] is None
        assert (await owner.get("/v1/projects/mine")).status_code == 200
        for name in ("other", "nothing", "default"):
            problem(await owner.get(f"/v1/projects/{name}"), 404, "not_found")
        for method, path, body in (
            ("POST", "/v1/projects", {"name": "x"}),
            ("PATCH", "/v1/projects/mine", {"suspended": True}),
            ("DELETE", "/v1/projects/mine", None),
        ):
            problem(await owner.request(method, path, json=body), 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("POST", {"name": "x", "suspended_at": None}),
        ("POST", {"name": "x\ny"}),
        ("POST", {}),
        ("POST", {"name": "-x"}),
        ("PATCH", {}),
        ("PATCH", {"suspended": True, "name": "y"}),
        ("PATCH", {"suspended": False, "cancel_running": True}),
        ("PATCH", {"suspended": True, "removed_at": None}),
    ],
)
async def test_other_fields_and_invalid_names_are_refused(api: Served, method: str, body: dict[str, Any]) -> None:
    path = "/v1/projects" if method == "POST" else "/v1/projects/default"
    problem(await api.http.request(method, path, json=body), 422, "invalid_option")
    assert (await api.http.get("/v1/projects/default")).json()["suspended_at"] is None


# --- an operator acts in a project ----------------------------------------------------------------------------------


async def test_an_operator_acts_in_the_project_that_the_header_names(api: Served) -> None:
    async with await api.caller_of("mine") as owner:
        job_id = await submitted(owner)
        mine = {"Belljar-Project": "mine"}
        problem(await api.http.get(f"/v1/jobs/{job_id}"), 404, "not_found")
        assert (await api.http.get(f"/v1/jobs/{job_id}", headers=mine)).json()["id"] == job_id
        keys = (await api.http.get("/v1/keys", headers=mine)).json()["keys"]
        assert {key["project"] for key in keys} == {"mine"}
        made = (await api.http.post("/v1/keys", json={"name": "x"}, headers=mine)).json()
        assert made["project"] == "mine"
        assert (await owner.get("/v1/jobs", headers=mine)).status_code == 200


async def test_the_header_gives_no_access_to_another_project(api: Served) -> None:
    await api.http.post("/v1/projects", json={"name": "other"})
    async with await api.caller_of("mine") as owner:
        answers = []
        for name in ("other", "nothing", "default"):
            body = problem(await owner.get("/v1/jobs", headers={"Belljar-Project": name}), 404, "not_found")
            answers.append(body["detail"].replace(name, "NAME"))
        assert len(set(answers)) == 1
    problem(await api.http.get("/v1/jobs", headers={"Belljar-Project": "nothing"}), 404, "not_found")


# --- suspended ------------------------------------------------------------------------------------------------------


async def test_keys_of_a_suspended_project_are_refused_until_it_is_resumed(api: Served) -> None:
    async with await api.caller_of("mine") as owner, await api.caller_of("other") as other:
        job_id = await submitted(owner)
        suspended = await api.http.patch("/v1/projects/mine", json={"suspended": True})
        assert suspended.json()["suspended_at"]
        assert "'mine' is suspended" in problem(await owner.get("/v1/jobs"), 403, "project_suspended")["detail"]
        assert (await other.get("/v1/jobs")).status_code == 200
        job = await api.services.job_store.get("mine", job_id)
        assert job is not None and job.status.value == "queued"
        assert (await api.http.patch("/v1/projects/mine", json={"suspended": False})).json()["suspended_at"] is None
        assert (await owner.get(f"/v1/jobs/{job_id}", params={"wait": 0.01})).json()["status"] == "queued"


async def test_a_suspension_ends_waits_and_is_ended_by_another_process(api: Served) -> None:
    async with await api.caller_of("mine") as owner:
        job_id = await submitted(owner)
        waiting = asyncio.create_task(owner.get(f"/v1/jobs/{job_id}", params={"wait": 600}))
        while not api.services.changes.watched():
            await asyncio.sleep(0.01)
        await api.http.patch("/v1/projects/mine", json={"suspended": True})
        async with asyncio.timeout(20):
            problem(await waiting, 403, "project_suspended")
        # What `belljar project set mine --resume` writes; this process has not been told.
        await api.services.projects.resume("mine")
        api.services.keys.forget()  # stands for the half second of the cache
        assert (await owner.get(f"/v1/jobs/{job_id}", params={"wait": 0.01})).status_code == 200


@pytest.mark.parametrize("cancel", [False, True])
async def test_running_jobs_of_a_suspended_project_go_on_or_are_cancelled(api: Served, cancel: bool) -> None:
    async with await api.caller_of("mine") as owner:
        await submitted(owner)
    held = await api.begin()
    body = {"suspended": True} | ({"cancel_running": True} if cancel else {})
    assert (await api.http.patch("/v1/projects/mine", json=body)).status_code == 200
    job = await api.services.job_store.get("mine", held.id)
    assert job is not None and (job.status.value, job.cancel_requested) == ("running", cancel)


async def test_an_operator_is_not_locked_out_by_a_suspension(api: Served) -> None:
    assert (await api.http.patch("/v1/projects/default", json={"suspended": True})).status_code == 200
    assert (await api.http.get("/v1/jobs")).status_code == 200
    assert (await api.http.patch("/v1/projects/default", json={"suspended": False})).status_code == 200


# --- removed --------------------------------------------------------------------------------------------------------


async def test_a_project_with_running_jobs_is_not_removed(api: Served) -> None:
    async with await api.caller_of("mine") as owner:
        await submitted(owner)
        await api.begin()
        refused = problem(await api.http.delete("/v1/projects/mine"), 409, "project_conflict")
        assert refused["running_jobs"] == 1 and "--cancel-running" in refused["detail"]
        assert (await owner.get("/v1/jobs")).status_code == 200


async def test_the_project_of_an_operators_key_is_not_removed(api: Served) -> None:
    key = (await api.http.post("/v1/keys", json={"name": "x", "project": "mine", "admin": True})).json()
    assert key["id"] in problem(await api.http.delete("/v1/projects/mine"), 409, "project_conflict")["detail"]
    assert (await api.http.delete(f"/v1/keys/{key['id']}")).status_code == 200
    assert (await api.http.delete("/v1/projects/mine")).status_code == 202


async def test_the_default_project_stays_even_without_keys(api: Served) -> None:
    """The next start of the server creates its key there."""
    other = (await api.http.post("/v1/keys", json={"name": "x", "project": "ops", "admin": True})).json()
    async with api.caller(other["secret"]) as operator:
        for key in (await operator.get("/v1/keys", headers={"Belljar-Project": "default"})).json()["keys"]:
            await operator.delete(f"/v1/keys/{key['id']}")
        problem(await operator.delete("/v1/projects/default"), 409, "project_conflict")


async def test_a_removed_project_takes_no_more_requests_keys_or_work(api: Served) -> None:
    async with await api.caller_of("mine") as owner:
        await submitted(owner)
        removed = await api.http.delete("/v1/projects/mine")
        assert removed.status_code == 202 and removed.json()["removed_at"] and removed.json()["suspended_at"]
        problem(await owner.get("/v1/jobs"), 401, "not_authenticated")
    mine = {"Belljar-Project": "mine"}
    problem(await api.http.get("/v1/jobs", headers=mine), 404, "not_found")
    problem(await api.http.post("/v1/keys", json={"name": "x", "project": "mine"}), 409, "project_conflict")
    problem(await api.http.post("/v1/projects", json={"name": "mine"}), 409, "project_conflict")
    problem(await api.http.patch("/v1/projects/mine", json={"suspended": False}), 409, "project_conflict")
    assert (await api.http.delete("/v1/projects/mine")).json()["removed_at"] == removed.json()["removed_at"]
    for method in ("GET", "DELETE"):
        problem(await api.http.request(method, "/v1/projects/nothing"), 404, "not_found")


async def test_an_upload_that_began_before_a_removal_stores_nothing_after_it(api: Served) -> None:
    _, secret = await api.services.keys.create("mine", "x", role=Role.OWNER)
    begun, go_on = asyncio.Event(), asyncio.Event()
    boundary = b"--x\r\nContent-Disposition: form-data; name=script; filename=a.py\r\n\r\nprint(1)\r\n--x--\r\n"

    async def body() -> Any:
        yield boundary[:20]
        begun.set()
        await go_on.wait()
        yield boundary[20:]

    async with api.caller(secret) as owner:
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        upload = asyncio.create_task(owner.post("/v1/scripts", content=body(), headers=headers))
        await begun.wait()
        assert (await api.http.delete("/v1/projects/mine")).status_code == 202
        go_on.set()
        problem(await upload, 409, "project_conflict")
    assert (await api.services.scripts.list("mine"))[0] == []
