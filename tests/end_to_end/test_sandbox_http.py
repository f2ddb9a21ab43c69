"""A sandbox in a real machine over HTTP: what only the guest's own root, users and clock show. One machine for all."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.app import create_app
from belljar.control.api.services import open_services
from belljar.control.projects.scopes import Role
from belljar.settings import Settings
from control.api.sandbox_calls import events_of, text_of
from support.served import problem

pytestmark = pytest.mark.vm

SERVER = "exec python3 -m http.server 8000 --bind 127.0.0.1"


async def test_a_sandbox_from_its_creation_to_its_end(tmp_path: Path, built_images: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    settings = Settings(data_dir=data_dir, accelerator="tcg", pool="off")
    async with open_services(settings) as services:
        queue = open_queue(services)
        worker = open_worker(services, queue, "local", with_sandboxes=True)
        tasks = [asyncio.create_task(each.run()) for each in (queue, services.sandbox_queue, worker)]
        _, secret = await services.keys.create("tenant", "test", role=Role.MEMBER)
        transport = httpx.ASGITransport(create_app(services))
        headers = {"Authorization": f"Bearer {secret}"}
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as http:
                await _use(http)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _use(http: httpx.AsyncClient) -> None:
    body = {"shape": {"memory_mb": 128}, "env": {"GREETING": "hello"}, "labels": {"for": "test"}}
    created = await http.post("/v1/sandboxes?wait=180", json=body)
    assert created.status_code == 201, created.text
    url = f"/v1/sandboxes/{created.json()['id']}"

    async def run(command: str, **options: Any) -> dict[str, Any]:
        response = await http.post(f"{url}/exec", json={"command": command, **options}, timeout=60)
        assert response.status_code in (200, 201), response.text
        result: dict[str, Any] = response.json()
        return result

    await _commands(http, url, run)
    await _files(http, url, run)
    await _ports(http, url, run)
    ended = (await http.delete(url)).json()
    assert (ended["status"], ended["end"]["reason"]) == ("ended", "deleted")
    problem(await http.post(f"{url}/exec", json={"command": "true"}), 409, "sandbox_ended")


async def _commands(http: httpx.AsyncClient, url: str, run: Any) -> None:
    result = await run("echo $GREETING; pwd; id -u; exit 3")
    assert (result["stdout"], result["exit_code"]) == ("hello\n/work\n1000\n", 3)
    other = await http.post(f"{url}/exec", json={"command": "id -u", "user": "root"})
    assert problem(other, 422, "invalid_option")["option"] == "user"
    events = events_of(
        (await http.post(f"{url}/exec?stream=true", json={"args": ["python3", "-c", "print(6*7)"]})).text
    )
    assert text_of(events, "stdout") == "42\n" and events[-1][1]["exit_code"] == 0
    timed_out = await run("sleep 100", timeout_seconds=0.5)
    assert timed_out["timed_out"]
    problem(await http.post(f"{url}/exec", json={"args": ["/no/such"]}), 422, "cannot_start")
    metrics = (await http.get(f"{url}/metrics")).json()
    assert 0 < metrics["memory_bytes"] < metrics["memory_limit_bytes"]
    series = (await http.get(f"{url}/metrics?series=true")).json()
    assert series["seconds"] and 0 < max(series["memory_bytes"]) < series["memory_limit_bytes"] == 128 << 20


async def _files(http: httpx.AsyncClient, url: str, run: Any) -> None:
    assert (await http.put(f"{url}/files/sub/main.py", content=b"print('from a file')")).status_code == 201
    assert (await run("python3 sub/main.py"))["stdout"] == "from a file\n"
    await run("echo written > out.txt; ln -s /etc/passwd link")
    assert (await http.get(f"{url}/files/out.txt")).content == b"written\n"
    assert (await http.get(f"{url}/files//work/out.txt")).content == b"written\n"
    assert b"root:" in (await http.get(f"{url}/files/link")).content  # the guest's own, not the host's
    problem(await http.put(f"{url}/files//etc/new", content=b""), 403, "file_forbidden")
    problem(await http.get(f"{url}/files/..%2F..%2F..%2Fnothing"), 404, "file_not_found")
    problem(await http.put(f"{url}/files//etc/new?user=root", content=b""), 422, "invalid_option")
    archive = (await http.get(f"{url}/files?archive=tar")).content
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert {"sub/main.py", "out.txt", "link"} <= set(opened.getnames())
    large = bytes(range(256)) * 16_000
    assert (await http.put(f"{url}/files/large", content=large, timeout=60)).json()["size_bytes"] == len(large)
    assert (await http.get(f"{url}/files/large", timeout=60)).content == large
    full = await http.put(f"{url}/files/full", content=bytes(127 << 20), timeout=120)
    problem(full, 507, "file_disk_full")
    assert (await run("ls full; echo alive"))["stdout"] == "alive\n"


async def _ports(http: httpx.AsyncClient, url: str, run: Any) -> None:
    started = await run(SERVER, background=True)
    for _ in range(200):
        ports = (await http.get(f"{url}/ports")).json()["ports"]
        if ports:
            break
        await asyncio.sleep(0.1)
    output = (await http.get(f"{url}/processes/{started['pid']}")).json()
    assert [each["port"] for each in ports] == [8000], output
    assert (await http.get(ports[0]["path"] + "out.txt")).text == "written\n"
    await http.post(f"{url}/processes/{started['pid']}/signal", json={"signal": "SIGTERM"})
    assert (await http.get(f"{url}/processes/{started['pid']}?wait=30")).json()["signal"] == "SIGTERM"
    problem(await http.get(ports[0]["path"]), 502, "port_refused")
