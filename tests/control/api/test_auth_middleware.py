"""Authentication: keys, projects, and with auth off only requests from this machine that are not cross-origin."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.app import create_app
from belljar.data_dir import DataDir
from belljar.local_server import read_admin_key
from support.served import Served, problem, served

SUBMISSION = {"code": "print(1)", "language": "python"}
_KILLED_WHILE_CREATING = """
import asyncio, os, signal, sys
from pathlib import Path
from belljar.control.api.admin_key import ensure_admin_key

class Keys:
    async def add(self, key, secret):
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(ensure_admin_key(Keys(), Path(sys.argv[1])))
"""


def every_route() -> list[tuple[str, str]]:
    paths = create_app(None).openapi()["paths"]
    named = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    return [(method, path.replace("{", "").replace("}", "")) for method, path in named]


@pytest.mark.parametrize(("method", "path"), [*every_route(), ("GET", "/openapi.json"), ("GET", "/nothing")])
async def test_without_a_key_every_route_but_health_is_closed(api: Served, method: str, path: str) -> None:
    async with api.caller() as anonymous:
        response = await anonymous.request(method, path)
    if path in ("/healthz", "/readyz"):
        assert response.status_code in (200, 503)
        return
    assert "Authorization: Bearer" in problem(response, 401, "not_authenticated")["detail"]
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    ["Bearer wrong", "Bearer", "Bearer ", "Basic YTpi", "bj_x", "Bearer " + "x" * 600, "Bearer a b", "Bearer \xff"],
)
async def test_a_wrong_key_is_refused(api: Served, header: str) -> None:
    async with api.caller() as anonymous:
        response = await anonymous.get("/v1/jobs", headers={"Authorization": header.encode("latin-1")})
    problem(response, 401, "not_authenticated")


async def test_a_revoked_key_is_refused_at_once(api: Served) -> None:
    made = (await api.http.post("/v1/keys", json={"name": "ci"})).json()
    async with api.caller(made["secret"]) as caller:
        assert (await caller.get("/v1/jobs")).status_code == 200
        revoked = (await api.http.delete(f"/v1/keys/{made['id']}")).json()
        assert revoked["revoked_at"]
        assert "revoked" in problem(await caller.get("/v1/jobs"), 401, "not_authenticated")["detail"]


async def test_use_of_a_key_is_noted_but_not_at_every_request(api: Served) -> None:
    async with await api.caller_of("other") as caller:
        await caller.get("/v1/jobs")
        first = (await api.services.keys.list())[-1].last_used_at
        await caller.get("/v1/jobs")
        assert (await api.services.keys.list())[-1].last_used_at == first
    assert first is not None and (datetime.now(UTC) - first).total_seconds() < 60


async def test_a_project_sees_nothing_of_another(api: Served) -> None:
    script_id = await api.upload()
    job = await api.submit(stdin="secret")
    held = await api.begin()
    async with await api.caller_of("other") as other:
        assert (await other.get("/v1/jobs")).json() == {"jobs": [], "next_cursor": None}
        assert (await other.get("/v1/scripts")).json()["scripts"] == []
        for method, path in (
            ("GET", f"/v1/jobs/{job['id']}"),
            ("GET", f"/v1/jobs/{job['id']}/logs"),
            ("GET", f"/v1/jobs/{job['id']}/artifacts"),
            ("GET", f"/v1/jobs/{job['id']}/artifacts/x"),
            ("POST", f"/v1/jobs/{job['id']}/cancel"),
            ("GET", f"/v1/scripts/{script_id}"),
            ("DELETE", f"/v1/scripts/{script_id}"),
            ("POST", f"/v1/scripts/{script_id}/run"),
        ):
            problem(await other.request(method, path), 404, "not_found")
        problem(await other.post("/v1/jobs", json={"script_id": script_id}), 404, "not_found")
        mine = (await other.post("/v1/scripts", files={"script": ("hello.py", b"print(1)")})).json()
        assert mine["script_id"] == script_id  # the same content: the other's deleting it leaves it here
        assert (await other.delete(f"/v1/scripts/{script_id}")).status_code == 204
    assert (await api.http.get(f"/v1/scripts/{script_id}")).status_code == 200
    assert not (await api.http.get(f"/v1/jobs/{held.id}")).json()["cancel_requested"]


@pytest.mark.parametrize(
    "body", [{}, {"name": ""}, {"name": "a b"}, {"name": "x" * 65}, {"name": "a\n"}, {"name": "a", "x": 1}]
)
async def test_a_key_with_a_bad_name_is_not_made(api: Served, body: dict[str, Any]) -> None:
    problem(await api.http.post("/v1/keys", json=body), 422, "invalid_option")
    assert len(await api.services.keys.list()) == 1


async def test_a_secret_is_shown_once(api: Served) -> None:
    made = await api.http.post("/v1/keys", json={"name": "ci", "project": "p"})
    assert made.status_code == 201 and made.json()["secret"].startswith("bj_")
    listed = (await api.http.get("/v1/keys")).text
    assert made.json()["id"] in listed
    assert '"secret"' not in listed and made.json()["secret"] not in listed


async def test_the_admin_key_is_readable_by_its_owner_only_and_created_again_when_it_is_deleted(api: Served) -> None:
    data_dir = api.services.settings.data_dir
    path = DataDir(data_dir).admin_key
    assert path.stat().st_mode & 0o777 == 0o600
    first = read_admin_key(data_dir)
    assert not await ensure_admin_key(api.services.keys, data_dir)
    path.unlink()
    assert await ensure_admin_key(api.services.keys, data_dir)
    second = read_admin_key(data_dir)
    assert second not in (None, first)
    await api.services.keys.revoke((await api.services.keys.list())[-1].id)
    assert await ensure_admin_key(api.services.keys, data_dir)
    assert read_admin_key(data_dir) != second
    assert [file.name for file in data_dir.glob("admin*")] == ["admin.key"]


@pytest.mark.process
async def test_a_secret_that_a_crash_left_is_removed(api: Served, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    killed = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", _KILLED_WHILE_CREATING, str(folder))
    assert await killed.wait() == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 1
    assert await ensure_admin_key(api.services.keys, folder)
    assert [file.name for file in folder.iterdir()] == ["admin.key"]


# --- auth off -------------------------------------------------------------------------------------------------------


async def submit(api: Served, **headers: str) -> httpx.Response:
    async with api.caller() as anonymous:
        return await anonymous.post("/v1/jobs", json=SUBMISSION, headers=headers)


@pytest.fixture
def data_dir(api: Served) -> Path:
    return api.services.settings.data_dir


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080"])
async def test_with_auth_off_programs_on_this_machine_need_no_key(data_dir: Path, host: str) -> None:
    async with served(data_dir, auth="off") as api:
        assert (await submit(api, Host=host)).status_code == 202
        assert (await submit(api, Host=host, Origin=f"http://{host}")).status_code == 202


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "0.0.0.0:8080", "", "[::1", "localhost@x"]
)
async def test_with_auth_off_a_name_that_was_rebound_to_this_machine_is_refused(data_dir: Path, host: str) -> None:
    async with served(data_dir, auth="off") as api:
        problem(await submit(api, Host=host), 403, "forbidden")
        assert (await api.http.get("/v1/jobs")).json()["jobs"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://localhost:8080"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_with_auth_off_a_web_page_can_neither_submit_nor_read(data_dir: Path, headers: dict[str, str]) -> None:
    async with served(data_dir, auth="off") as api:
        problem(await submit(api, Host="127.0.0.1:8080", **headers), 403, "forbidden")
        async with api.caller() as page:
            form = {"script": ("a.py", b"print(1)")}
            problem(await page.post("/v1/scripts", files=form, headers=headers), 403, "forbidden")
            problem(await page.get("/v1/jobs", headers=headers), 403, "forbidden")
        assert (await api.http.get("/v1/jobs")).json()["jobs"] == []
        assert (await api.http.get("/v1/scripts")).json()["scripts"] == []


async def test_no_response_allows_another_origin_to_read_it(api: Served) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for response in (
        await api.http.options("/v1/jobs", headers=headers),
        await api.http.get("/v1/jobs", headers={"Origin": "http://evil.example"}),
    ):
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("name", ["Authorization", "Belljar-Project"])
async def test_a_header_that_decides_who_acts_where_is_sent_once(api: Served, name: str) -> None:
    values = {"Authorization": api.http.headers["authorization"], "Belljar-Project": "default"}
    headers = [*values.items(), (name, values[name])]
    async with api.caller() as anonymous:
        assert (await anonymous.get("/v1/jobs", headers=[*values.items()])).status_code == 200
        answer = problem(await anonymous.get("/v1/jobs", headers=headers), 400, "invalid_request")
    assert f"{name.lower()} 2 times" in answer["detail"].lower()


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/scripts/{}", "/v1/images/{}", "/v1/projects/{}", "/{}"])
async def test_a_key_in_a_path_is_not_repeated(api: Served, path: str) -> None:
    secret = api.http.headers["authorization"].removeprefix("Bearer ")
    response = await api.http.get(path.format(secret))
    assert response.status_code in (404, 422)
    assert secret not in response.text
