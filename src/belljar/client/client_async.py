"""A client of the HTTP API: one method per operation, errors as exceptions.

async with AsyncClient() as client:
    job = await client.run(code="print(6 * 7)", language="python")
    print(await job.output())
"""

from __future__ import annotations

import base64
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar
from urllib.parse import quote

from belljar.client.errors import ServerError, Unreachable
from belljar.client.function_async import AsyncFunction
from belljar.client.job_async import AsyncJob
from belljar.client.sandbox_async import AsyncSandbox
from belljar.client.transport_async import AsyncTransport

#: A wait is split into requests of this many seconds, because proxies limit the time of a request.
_WAIT_SECONDS = 30
P = ParamSpec("P")
R = TypeVar("R")


class AsyncClient:
    """A connection to one server. Every method raises ServerError or Unreachable."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        project: str | None = None,
        ca_file: Path | str | None = None,
        server_name: str | None = None,
        max_retries: int = 3,
    ) -> None:
        """Connect when it is necessary.

        Without `url`, the server and its key are those of the commands: `BELLJAR_SERVER`, `BELLJAR_API_KEY`,
        `belljar.toml`, else the server that runs on this machine. `project` is for operators' keys: the project in
        which requests act, instead of the key's own. `ca_file` has the certificate of the server, or of its authority
        (PEM). `server_name` is the name in the server's certificate, if that of the URL is another. `max_retries`
        bounds how often a request is repeated that may be repeated, with growing pauses.
        """
        if url is None:
            from belljar.client.found_server import find_server

            found = find_server(key=key, ca_file=Path(ca_file) if ca_file is not None else None)
            url, key, ca_file = found.url, found.key, found.ca_file
            server_name = server_name or found.server_name
        self.transport = AsyncTransport(
            url, key, project=project, ca_file=ca_file, server_name=server_name, max_retries=max_retries
        )
        self.url = self.transport.url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.transport.aclose()

    async def run(self, **request: Any) -> AsyncJob:
        """Submit a job, wait for its end and return it, whatever its status. Options as for `submit`.

        A job whose caller is interrupted is cancelled. `job.check()` raises JobFailed unless it succeeded.
        """
        job = await self.submit(**request)
        try:
            return await job.wait()
        except BaseException:
            with contextlib.suppress(ServerError, Unreachable):
                await job.cancel()
            raise

    def function(
        self,
        *,
        image: str | None = None,
        memory_mb: int | None = None,
        dependencies: Sequence[str] = (),
        **options: Any,
    ) -> Callable[[Callable[P, R]], AsyncFunction[P, R]]:
        """Return a decorator that lets a function run in machines: an AsyncFunction. Options as for `submit`."""

        def decorate(function: Callable[P, R]) -> AsyncFunction[P, R]:
            given = {"image": image, "memory_mb": memory_mb, **options}
            return AsyncFunction(function, lambda: self, dependencies, _given(given))

        return decorate

    async def upload(
        self, file: BinaryIO, filename: str, *, language: str | None = None, entrypoint: str | None = None
    ) -> dict[str, Any]:
        """Upload a file or an archive as a script; return the script, with its `script_id`."""
        fields = {"language": language, "entrypoint": entrypoint}
        data = {name: value for name, value in fields.items() if value is not None}
        # In a form, a part without a file name is not a file. The server replaces the name "-".
        return await self.transport.json("POST", "/v1/scripts", files={"script": (filename or "-", file)}, data=data)

    async def submit(self, **request: Any) -> AsyncJob:
        """Queue a job of `script_id`, of `code` and `language`, or of `files`, with options; return the job.

        A submission has an `idempotency_key`, unless retries are off, so that its repetition is the same job.
        """
        if self.transport.max_retries and "idempotency_key" not in request:
            request["idempotency_key"] = str(uuid.uuid4())
        is_repeatable = request.get("idempotency_key") is not None
        fields = await self.transport.json("POST", "/v1/jobs", json=request, is_repeatable=is_repeatable)
        return AsyncJob(self, fields)

    async def job(self, job_id: str) -> AsyncJob:
        """Return a job."""
        return AsyncJob(self, await self.transport.json("GET", f"/v1/jobs/{quote(job_id, safe='')}"))

    async def jobs(self, **filters: Any) -> dict[str, Any]:
        """Return a page: `jobs`, `next_cursor`. Filters: status, script_id, label, limit, cursor."""
        return await self.transport.json("GET", "/v1/jobs", params=_given(filters))

    async def iterate_jobs(self, **filters: Any) -> AsyncGenerator[AsyncJob, None]:
        """Yield all jobs, newest first. Filters: status, script_id, label, limit (of one request)."""
        while True:
            page = await self.jobs(**filters)
            for fields in page["jobs"]:
                yield AsyncJob(self, fields)
            if (cursor := page["next_cursor"]) is None:
                return
            filters["cursor"] = cursor

    async def cancel(self, job_id: str) -> AsyncJob:
        """Cancel a job and return it."""
        path = f"/v1/jobs/{quote(job_id, safe='')}/cancel"
        return AsyncJob(self, await self.transport.json("POST", path, is_repeatable=True))

    async def wait(self, job_id: str, timeout_seconds: float | None = None) -> AsyncJob:
        """Wait until a job has ended, at most `timeout_seconds`; return it in its last state."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        path = f"/v1/jobs/{quote(job_id, safe='')}"
        while True:
            left = _WAIT_SECONDS if deadline is None else min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
            job = AsyncJob(self, await self.transport.json("GET", path, params={"wait": left}))
            if job.is_ended or (deadline is not None and time.monotonic() >= deadline):
                return job

    def logs(self, job_id: str, *, stream: str | None = None, follow: bool = False) -> AsyncIterator[bytes]:
        """Yield a job's output in order; with `follow`, until the job has ended. `job.follow()` also resumes."""
        params: dict[str, Any] = {"follow": follow} | ({"stream": stream} if stream else {})
        path = f"/v1/jobs/{quote(job_id, safe='')}/logs"
        return self.transport.chunks(path, params=params, is_endless=follow)

    async def create_sandbox(
        self, template: str | None = None, *, wait_seconds: float = 120, **options: Any
    ) -> AsyncSandbox:
        """Create a sandbox and return it when it runs. It stays until it is deleted or its lifetime ends.

        `template` is a language or an image. Options: image, snapshot (the id of one), shape ({"vcpus", "memory_mb",
        "disk_mb"…}), egress, env, secrets, user ("root" or a uid), lifetime_seconds, idle_seconds, labels. Raises
        TimeoutError after `wait_seconds`, with it deleted.
        """
        given = {"template": template, "idempotency_key": str(uuid.uuid4()), **options}
        deadline = time.monotonic() + wait_seconds
        while True:
            left = max(0.0, min(_WAIT_SECONDS, deadline - time.monotonic()))
            # The same key: each repetition is the same sandbox, and waits for it again.
            fields = await self.transport.json(
                "POST", "/v1/sandboxes", json=_given(given), params={"wait": left}, is_repeatable=True
            )
            sandbox = AsyncSandbox(self, fields)
            if sandbox.status != "creating":
                return sandbox
            if time.monotonic() >= deadline:
                await sandbox.delete()
                raise TimeoutError(f"the sandbox {sandbox.id} had no machine after {wait_seconds:g} seconds")

    @contextlib.asynccontextmanager
    async def sandbox(self, template: str | None = None, **options: Any) -> AsyncIterator[AsyncSandbox]:
        """Create a sandbox for the block; it is deleted at its end. Options as for `create_sandbox`."""
        sandbox = await self.create_sandbox(template, **options)
        try:
            yield sandbox
        finally:
            await sandbox.delete()

    async def get_sandbox(self, sandbox_id: str) -> AsyncSandbox:
        """Return a sandbox."""
        return AsyncSandbox(self, await self.transport.json("GET", f"/v1/sandboxes/{quote(sandbox_id, safe='')}"))

    async def sandboxes(self, **filters: Any) -> dict[str, Any]:
        """Return a page: `sandboxes`, `next_cursor`. Filters: status, label, limit, cursor."""
        return await self.transport.json("GET", "/v1/sandboxes", params=_given(filters))

    async def snapshots(self, **filters: Any) -> dict[str, Any]:
        """Return a page: `snapshots`, `next_cursor`. Filters: limit, cursor."""
        return await self.transport.json("GET", "/v1/snapshots", params=_given(filters))

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot. Sandboxes that were made from it go on."""
        await self.transport.json("DELETE", f"/v1/snapshots/{quote(snapshot_id, safe='')}")

    async def job_metrics(self, job_id: str) -> dict[str, Any]:
        """Return what a job's machine used over its life: arrays `seconds`, `cpu`, `memory_bytes`, …"""
        return await self.transport.json("GET", f"/v1/jobs/{quote(job_id, safe='')}/metrics")

    async def artifacts(self, job_id: str) -> list[dict[str, Any]]:
        """Return path and size of each artifact of a job."""
        artifacts: list[dict[str, Any]] = (
            await self.transport.json("GET", f"/v1/jobs/{quote(job_id, safe='')}/artifacts")
        )["artifacts"]
        return artifacts

    def artifact(self, job_id: str, path: str) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of one artifact."""
        return self.transport.chunks(f"/v1/jobs/{quote(job_id, safe='')}/artifacts/{quote(path)}")

    async def flows(self, job_id: str, **filters: Any) -> dict[str, Any]:
        """Return what a job's machine talked to. Filters: verdict (`allowed` or `refused`), limit."""
        return await self.transport.json("GET", f"/v1/jobs/{quote(job_id, safe='')}/flows", params=_given(filters))

    async def audit(self, **filters: Any) -> dict[str, Any]:
        """Return a page of the audit log, newest first: `audit`, `next_cursor`.

        Filters: project, actor, action, since, until, limit, cursor.
        """
        return await self.transport.json("GET", "/v1/audit", params=_given(filters))

    def audit_records(self, **filters: Any) -> AsyncIterator[dict[str, Any]]:
        """Yield all records of the audit log, oldest first. Filters as for `audit`."""
        return self.transport.json_lines("/v1/audit", params={**_given(filters), "format": "jsonl"})

    async def audit_head(self) -> dict[str, Any]:
        """Return both ends of the audit log's chain: `anchor` and `head`, each with `seq` and `hash`."""
        return await self.transport.json("GET", "/v1/audit/head")

    async def create_key(self, **options: Any) -> dict[str, Any]:
        """Create a key: name, project, role, scopes, admin, expires_in_seconds. Return it with its `secret`."""
        return await self.transport.json("POST", "/v1/keys", json=options)

    async def keys(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        """Return a page: `keys`, `next_cursor`."""
        return await self.transport.json("GET", "/v1/keys", params=_given({"limit": limit, "cursor": cursor}))

    async def revoke_key(self, key_id: str) -> dict[str, Any]:
        """Revoke a key and return it."""
        return await self.transport.json("DELETE", f"/v1/keys/{quote(key_id, safe='')}")

    async def rotate_key(self, key_id: str, overlap_seconds: int) -> dict[str, Any]:
        """Create a key that replaces another; return it with its `secret`. The old one ends after the overlap."""
        body = {"overlap_seconds": overlap_seconds}
        return await self.transport.json("POST", f"/v1/keys/{quote(key_id, safe='')}/rotate", json=body)

    async def create_project(self, name: str) -> dict[str, Any]:
        """Create a project and return it."""
        return await self.transport.json("POST", "/v1/projects", json={"name": name})

    async def projects(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        """Return a page: `projects`, `next_cursor`."""
        return await self.transport.json("GET", "/v1/projects", params=_given({"limit": limit, "cursor": cursor}))

    async def change_project(self, name: str, **changes: Any) -> dict[str, Any]:
        """Change a project and return it: suspended, cancel_running."""
        return await self.transport.json("PATCH", f"/v1/projects/{quote(name, safe='')}", json=changes)

    async def quotas(self, name: str) -> dict[str, Any]:
        """Return a project's quotas (`quotas`), and the limits that hold with the server's defaults (`limits`)."""
        return await self.transport.json("GET", f"/v1/projects/{quote(name, safe='')}/quotas")

    async def change_quotas(self, name: str, **changes: Any) -> dict[str, Any]:
        """Change quotas of a project by name, and return all: a number, "unlimited", or None for the default."""
        return await self.transport.json("PATCH", f"/v1/projects/{quote(name, safe='')}/quotas", json=changes)

    async def usage(self, *, days: int | None = None) -> dict[str, Any]:
        """Return what the project may use and has used: `quotas`, and the use of the last `days`."""
        return await self.transport.json("GET", "/v1/usage", params=_given({"days": days}))

    async def remove_project(self, name: str) -> dict[str, Any]:
        """Remove a project with all of its data; return it as it is until then."""
        return await self.transport.json("DELETE", f"/v1/projects/{quote(name, safe='')}")

    async def members(self, project: str) -> dict[str, Any]:
        """Return the `members` of a project, and the invitations."""
        return await self.transport.json("GET", f"/v1/projects/{quote(project, safe='')}/members")

    async def set_member(self, project: str, email: str, role: str) -> dict[str, Any]:
        """Invite the owner of an address of email, or change a member's role; return the member."""
        return await self.transport.json("PUT", _member_path(project, email), json={"role": role})

    async def remove_member(self, project: str, email: str) -> dict[str, Any]:
        """Remove a member or an invitation, and return it."""
        return await self.transport.json("DELETE", _member_path(project, email))

    async def set_secret(self, name: str, value: bytes) -> dict[str, Any]:
        """Store a new version of a secret; return its record."""
        body = {"value_base64": base64.b64encode(value).decode()}
        return await self.transport.json("PUT", f"/v1/secrets/{quote(name, safe='')}", json=body)

    async def secrets(self) -> list[dict[str, Any]]:
        """Return the records of the project's secrets, without their values."""
        secrets: list[dict[str, Any]] = (await self.transport.json("GET", "/v1/secrets"))["secrets"]
        return secrets

    async def remove_secret(self, name: str) -> dict[str, Any]:
        """Remove a secret and return its record."""
        return await self.transport.json("DELETE", f"/v1/secrets/{quote(name, safe='')}")


def _member_path(project: str, email: str) -> str:
    return f"/v1/projects/{quote(project, safe='')}/members/{quote(email, safe='')}"


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
