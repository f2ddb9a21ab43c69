"""The real application over real services in a folder, without a socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.app import create_app
from belljar.control.api.services import Services, open_services
from belljar.control.projects.scopes import Role
from belljar.local_server import read_admin_key
from belljar.model.job import Job, MachineInfo, Timings
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.settings import Settings
from support.empty_database import place_empty_database

URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Served:
    """An application, its services, and a client with the admin key."""

    services: Services
    http: httpx.AsyncClient
    transport: httpx.ASGITransport

    def caller(self, secret: str | None = None) -> httpx.AsyncClient:
        """Return a client with this key, or without any."""
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return httpx.AsyncClient(transport=self.transport, base_url=URL, headers=headers)

    async def caller_of(self, project: str) -> httpx.AsyncClient:
        """Return a client with a new owner's key of this project."""
        _, secret = await self.services.keys.create(project, "test", role=Role.OWNER)
        return self.caller(secret)

    async def upload(self, code: str = "print(1)", **fields: str) -> str:
        response = await self.http.post("/v1/scripts", files={"script": ("hello.py", code.encode())}, data=fields)
        assert response.status_code == 201, response.text
        return str(response.json()["script_id"])

    async def submit(self, **options: Any) -> dict[str, Any]:
        body = {"code": "print(1)", "language": "python", **options}
        response = await self.http.post("/v1/jobs", json=body)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    async def begin(self) -> Job:
        """Claim the next job and record that it runs, as a worker does."""
        job = await self.services.claims.claim("w1", vcpus=64, memory_mb=1 << 20, lease_seconds=30)
        assert job is not None
        machine = MachineInfo(source="boot", hypervisor="qemu", accelerator="tcg")
        claims = self.services.claims
        assert await claims.running("w1", job, started_at=datetime.now(UTC), machine=machine, timings=Timings())
        self.services.changes.notify(job.id)
        return job

    async def end(self, job: Job, status: Status = Status.SUCCEEDED, **result: Any) -> None:
        """Record the end of a job, as a worker does."""
        outcome = Outcome(status=status, finished_at=datetime.now(UTC), **result)
        assert await self.services.claims.finish("w1", job, outcome)
        self.services.changes.notify(job.id)


@asynccontextmanager
async def served(data_dir: Path, **settings: Any) -> AsyncIterator[Served]:
    configured = Settings(data_dir=data_dir, **settings)
    await place_empty_database(configured)
    async with open_services(configured) as services:
        await ensure_admin_key(services.keys, data_dir)
        transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {read_admin_key(data_dir)}"}
        async with httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as http:
            yield Served(services, http, transport)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Return the problem document (RFC 9457), after a check of its status and code."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["title"] and body["detail"] and "\n" not in body["detail"]
    return body
