"""Example sandboxes, keys, members and secrets of the project `default`, for the pictures of their pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from belljar.control.projects.scopes import Role
from belljar.model.secrets import SecretValue
from support.sandbox_node import AgentNode
from support.served import Served

_SCRIPT = """import csv

with open("grades.csv", newline="") as file:
    for row in csv.DictReader(file):
        print(row["name"], row["mean"])
"""


@asynccontextmanager
async def project_pages(api: Served, folder: Path) -> AsyncIterator[dict[str, str]]:
    """Make the data, and yield the addresses of the pages by name; the sandboxes end with the block."""
    folder.mkdir()
    (folder / "data").mkdir()
    (folder / "report.py").write_text(_SCRIPT)
    (folder / "grades.csv").write_text("name,mean\nAda,95.5\nGrace,91.0\n")
    (folder / "model.bin").write_bytes(bytes(3_400_000))
    async with AgentNode(api.services.sandbox_queue.link, folder).running():
        ended = await _sandbox(api, template="python", labels={"team": "ads"})
        await api.http.delete(f"/v1/sandboxes/{ended}")
        box = await _sandbox(api, template="python", labels={"team": "search", "run": "nightly"}, env={"MODE": "ci"})
        for command in ("python3 -c 'print(6 * 7)'", "exit 3"):
            await api.http.post(f"/v1/sandboxes/{box}/exec", json={"command": command})
        server = "exec python3 -m http.server 8000 --bind 127.0.0.1"
        await api.http.post(f"/v1/sandboxes/{box}/exec", json={"command": server, "background": True})
        await asyncio.sleep(1)  # until it listens
        paused = await _sandbox(api, template="python", labels={"team": "search"})
        await api.http.post(f"/v1/sandboxes/{box}/snapshot")
        await api.http.post(f"/v1/sandboxes/{paused}/pause")
        await _people(api)
        files = f"/sandboxes/{box}/files/{folder}"
        yield {
            "sandboxes": "/sandboxes",
            "sandbox-new": "/sandboxes/new",
            "sandbox": f"/sandboxes/{box}",
            "sandbox-paused": f"/sandboxes/{paused}",
            "terminal-paused": f"/sandboxes/{paused}/terminal",
            "snapshots": "/snapshots",
            "sandbox-ended": f"/sandboxes/{ended}",
            "terminal": f"/sandboxes/{box}/terminal",
            "files": files,
            "file": f"{files}/report.py",
            "images": "/images",
            "image": "/images/python",
            "nodes": "/nodes",
            "keys": "/keys",
            "secrets": "/secrets",
            "members": "/members",
            "projects": "/projects",
            "project": "/projects/shop",
            "usage": "/usage",
            "audit": "/audit",
            "audit-none": "/audit?action=nothing",
        }


async def _sandbox(api: Served, **options: Any) -> str:
    response = await api.http.post("/v1/sandboxes", json=options)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def _people(api: Served) -> None:
    await api.services.keys.create("default", "ci", role=Role.MEMBER)
    old, _ = await api.services.keys.create("default", "dashboards", role=Role.VIEWER)
    await api.services.keys.revoke(old.id)
    await api.services.projects.create("shop")
    await api.http.put("/v1/projects/default/quotas", json={"max_running_jobs": 20, "max_jobs_per_day": 40})
    for email, role in (("ada@example.com", "owner"), ("grace@example.com", "member")):
        await api.http.put(f"/v1/projects/default/members/{email}", json={"role": role})
    for name in ("DATABASE_URL", "REGISTRY_TOKEN"):
        await api.services.secrets.set("default", name, SecretValue(b"an example"))
