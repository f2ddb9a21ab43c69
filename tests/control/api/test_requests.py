"""Every request: its id, HEAD, methods, framing, which paths of the host it shows, and how streams end."""

from __future__ import annotations

import asyncio
import json

import pytest
import structlog
from sqlalchemy import event

from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.logs.log import LogWriter, log_path
from belljar.control.projects.scopes import Role
from belljar.local_server import read_admin_key
from belljar.model.errors import DamagedImage, HostError
from belljar.model.job import Job, JobError
from belljar.model.job_options import JobRequest
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.served import Served, problem, served

# --- ids and the log ------------------------------------------------------------------------------------------------


async def test_every_answer_has_a_new_id(api: Served) -> None:
    async with api.caller() as anonymous:
        answers = [await api.http.get("/v1/jobs"), await anonymous.get("/v1/jobs"), await anonymous.get("/healthz")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert all(each.startswith("req_") for each in ids)
    assert answers[1].json()["request_id"] == ids[1]


@pytest.mark.parametrize(("given", "kept"), [("abc-1.X_2", True), ("x" * 65, False), ("a b", False), ("-a", False)])
async def test_a_sane_id_of_the_callers_is_kept(api: Served, given: str, kept: bool) -> None:
    response = await api.http.get("/v1/jobs/x", headers={"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_a_request_is_one_event_in_the_log_with_its_id_and_no_text_of_the_callers(api: Served) -> None:
    events = []

    def keep(_logger: object, _name: str, event: dict[str, object]) -> dict[str, object]:
        events.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        await api.http.get("/v1/jobs/a%0Ab?limit=1", headers={"X-Request-Id": "mine"})
    finally:
        structlog.reset_defaults()
    (event,) = [event for event in events if event["event"] == "request_served"]
    assert (event["method"], event["path"], event["status"]) == ("GET", "/v1/jobs/a%0Ab", 404)
    assert (event["request_id"], event["project"]) == ("mine", "default")
    assert str(event["key"]).startswith("key_")


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, POST"),
        ("DELETE", "/v1/jobs/x", "GET, HEAD"),
        ("PATCH", "/v1/scripts/x", "DELETE, GET, HEAD"),
        ("GET", "/v1/jobs/x/cancel", "POST"),
        ("POST", "/v1/jobs/x/artifacts/a/b", "GET, HEAD"),
        ("HEAD", "/v1/jobs/x/cancel", "POST"),
    ],
)
async def test_a_wrong_method_returns_the_allowed_ones(api: Served, method: str, path: str, allowed: str) -> None:
    response = await api.http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


async def test_head_works_wherever_get_does(api: Served) -> None:
    job = await api.submit()
    for path in ("/healthz", "/v1/jobs", f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/logs", "/openapi.json"):
        response = await api.http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    response = await api.http.head("/v1/jobs/x")
    assert (response.status_code, response.content) == (404, b"")


async def test_head_of_a_log_that_is_followed_does_not_follow(api: Served) -> None:
    job = await api.submit()
    async with asyncio.timeout(20):
        response = await api.http.head(f"/v1/jobs/{job['id']}/logs", params={"follow": True})
    assert response.status_code == 200


async def test_a_length_beside_chunks_is_refused(api: Served) -> None:
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "2", "Content-Type": "application/json"}
    response = await api.http.post("/v1/jobs", content=b"{}", headers=headers)
    assert "Content-Length" in problem(response, 400, "invalid_request")["detail"]
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize("kind", ["Multipart/Form-Data; boundary=x", "multipart/form-data; Boundary=x"])
async def test_the_type_of_a_form_may_be_in_any_case(api: Served, kind: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="script"; filename="a.py"\r\n\r\nprint(1)\r\n--x--\r\n'
    assert (await api.http.post("/v1/scripts", content=form, headers={"Content-Type": kind})).status_code == 201


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "utf-16", "zip", "none"])
async def test_a_charset_of_a_form_changes_nothing(api: Served, charset: str) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="script"; filename="\xc3\xa9.py"\r\n\r\nprint(1)\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    response = await api.http.post("/v1/scripts", content=form, headers={"Content-Type": kind})
    assert (response.status_code, response.json()["name"]) == (201, "é.py")


# --- what is for operators only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/nodes", "/metrics"])
async def test_what_concerns_all_projects_takes_an_admin_key(api: Served, path: str) -> None:
    async with await api.caller_of("tenant") as tenant:
        problem(await tenant.get(path), 403, "forbidden")
    assert (await api.http.get(path)).status_code == 200


@pytest.mark.parametrize("error", [HostError, DamagedImage])
async def test_tenants_see_no_paths_of_the_host(
    api: Served, monkeypatch: pytest.MonkeyPatch, error: type[HostError]
) -> None:
    async def fails(*_args: object, **_more: object) -> None:
        raise error("cannot read /srv/belljar/blobs/x: it is broken")

    monkeypatch.setattr(api.services.job_store, "list", fails)
    async with await api.caller_of("tenant") as tenant:
        shown = problem(await tenant.get("/v1/jobs"), 503, error.code)["detail"]
    assert shown and "/srv" not in shown
    assert "/srv/belljar/blobs/x" in problem(await api.http.get("/v1/jobs"), 503, error.code)["detail"]


async def test_tenants_see_no_paths_of_the_host_in_their_jobs(api: Served) -> None:
    folder = str(api.services.settings.data_dir)
    async with await api.caller_of("tenant") as tenant:
        job = (await tenant.post("/v1/jobs", json={"code": "x", "language": "python"})).json()
        held = await api.begin()
        await api.end(held, Status.FAILED, error=JobError(code="damaged_image", message=f"{folder}/images/a is bad"))
        for path in (f"/v1/jobs/{job['id']}", "/v1/jobs"):
            text = (await tenant.get(path)).text
            assert folder not in text
            assert "is bad" in text


async def test_tenants_see_paths_of_their_machines_alone(api: Served) -> None:
    async with await api.caller_of("tenant") as tenant:
        shown = []
        for code, message in (
            ("machine_died", "QEMU failed: cannot open /srv/belljar/blobs/x"),
            ("cannot_execute", "the entrypoint could not be executed: /usr/bin/x"),
        ):
            job = (await tenant.post("/v1/jobs", json={"code": "x", "language": "python"})).json()
            await api.end(await api.begin(), Status.FAILED, error=JobError(code=code, message=message))
            shown.append((await tenant.get(f"/v1/jobs/{job['id']}")).json()["error"]["message"])
            assert (await api.services.jobs.get("tenant", job["id"])).error == JobError(code=code, message=message)
    assert shown == ["QEMU failed: cannot open PATH", "the entrypoint could not be executed: /usr/bin/x"]


async def test_a_waiter_does_not_read_the_job_for_each_output(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    job = await api.submit()
    reads, get = 0, api.services.job_store.get

    async def counted(project: str | None, job_id: str) -> Job | None:
        nonlocal reads
        reads += 1
        return await get(project, job_id)

    monkeypatch.setattr(api.services.job_store, "get", counted)
    waiting = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 60}))
    while not api.services.changes.watched():
        await asyncio.sleep(0.01)
    for _ in range(50):
        api.services.changes.notify_log(job["id"])
        await asyncio.sleep(0.005)
    await api.end(await api.begin())
    assert (await waiting).json()["status"] == "succeeded"
    assert reads <= 4


# --- auth off -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.2:8080", "127.255.255.254:1"])
async def test_with_auth_off_every_loopback_address_works(api: Served, host: str) -> None:
    async with served(api.services.settings.data_dir, auth="off") as off, off.caller() as anonymous:
        assert (await anonymous.get("/v1/jobs", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", ["128.0.0.1", "0x7f.1", "127.1", "127.0.0.1.nip.io", "[::2]", "2130706433"])
async def test_with_auth_off_no_other_host_does(api: Served, host: str) -> None:
    async with served(api.services.settings.data_dir, auth="off") as off, off.caller() as anonymous:
        problem(await anonymous.get("/v1/jobs", headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "http://evil.example", "", "http://"])
async def test_with_auth_off_other_origins_are_refused(api: Served, origin: str) -> None:
    async with served(api.services.settings.data_dir, auth="off") as off, off.caller() as anonymous:
        problem(await anonymous.get("/v1/jobs", headers={"Origin": origin}), 403, "forbidden")


# --- streams --------------------------------------------------------------------------------------------------------


class Followed:
    """A follower of a job's log by plain ASGI, which shows whether the response has an end."""

    def __init__(self, api: Served, job_id: str, secret: str, headers: dict[str, str] | None = None) -> None:
        self.body = b""
        self.complete = False
        self.begun = asyncio.Event()
        self._headers = {"authorization": f"Bearer {secret}", "host": "localhost", **(headers or {})}
        self._requested = False
        self._left = asyncio.Event()
        path = f"/v1/jobs/{job_id}/logs"
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"follow=true",
            "headers": [(name.encode(), value.encode()) for name, value in self._headers.items()],
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
        }
        self.task = asyncio.create_task(api.transport.app(scope, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, object]:
        if self._requested:
            await self._left.wait()
            return {"type": "http.disconnect"}
        self._requested = True
        return {"type": "http.request", "body": b"", "more_body": False}

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()

    async def _send(self, message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            self.begun.set()
        else:
            self.body += message.get("body", b"")  # type: ignore[operator]
            self.complete = not message.get("more_body", False)


async def follower(api: Served) -> tuple[Followed, str]:
    """A follower of a new job, and its key's id."""
    job = await api.submit()
    key, secret = await api.services.keys.create("default", "reader", role=Role.VIEWER)
    following = Followed(api, job["id"], secret)
    await following.begun.wait()
    return following, key.id


@pytest.mark.parametrize("through", ["api", "rotation", "another process"])
async def test_a_revoked_or_rotated_key_ends_its_open_streams(api: Served, through: str) -> None:
    following, key_id = await follower(api)
    if through == "api":
        await api.http.delete(f"/v1/keys/{key_id}")
    elif through == "rotation":
        await api.http.post(f"/v1/keys/{key_id}/rotate", json={"overlap_seconds": 0})
    else:
        await api.services.keys.revoke(key_id)
    async with asyncio.timeout(20):
        await following.task
    assert not following.complete


async def test_a_revoked_key_ends_its_waiting(api: Served) -> None:
    job = await api.submit()
    key, secret = await api.services.keys.create("default", "reader", role=Role.VIEWER)
    async with api.caller(secret) as reader:
        waiting = asyncio.create_task(reader.get(f"/v1/jobs/{job['id']}", params={"wait": 600}))
        while not api.services.changes.watched():
            await asyncio.sleep(0.01)
        await api.http.delete(f"/v1/keys/{key.id}")
        async with asyncio.timeout(20):
            problem(await waiting, 401, "not_authenticated")


async def test_a_server_that_stops_breaks_streams_off_and_answers_waiters(api: Served) -> None:
    following, _ = await follower(api)
    job = await api.submit()
    waiting = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 600}))
    while len(api.services.changes.watched()) < 2:
        await asyncio.sleep(0.01)
    with structlog.testing.capture_logs() as log:
        api.services.changes.stop()
        async with asyncio.timeout(20):
            await following.task
            assert (await waiting).json()["status"] == "queued"
    assert not following.complete
    assert [entry["event"] for entry in log if entry["log_level"] in ("warning", "error")] == []


async def test_what_another_process_writes_reaches_followers_and_waiters(api: Served) -> None:
    following, _ = await follower(api)
    (job,) = (await api.http.get("/v1/jobs")).json()["jobs"]
    waiting = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 600}))
    claims = api.services.claims
    held = await claims.claim("w2", vcpus=8, memory_mb=4096, lease_seconds=30)
    assert held is not None
    with LogWriter(log_path(api.services.settings.data_dir, held.id)) as writer:
        writer.append(LogStream.STDOUT, b"from elsewhere")
    async with asyncio.timeout(20):
        while following.body != b"from elsewhere":
            await asyncio.sleep(0.01)
        await api.http.post(f"/v1/jobs/{job['id']}/cancel")
        job_after = await api.services.job_store.get(None, held.id)
        assert job_after is not None and job_after.cancel_requested
    waiting.cancel()
    following.task.cancel()
    await asyncio.gather(waiting, following.task, return_exceptions=True)


async def test_followers_that_leave_keep_no_connection_of_the_database(api: Served) -> None:
    job = await api.submit()
    secret = read_admin_key(api.services.settings.data_dir)
    assert secret is not None
    for number in range(40):
        following = Followed(api, job["id"], secret)
        for _ in range(number % 7):
            await asyncio.sleep(0)
        following.leave()
        async with asyncio.timeout(20):
            await following.task
    pool = api.services.database._engine.pool
    assert pool.checkedout() == 0  # type: ignore[attr-defined]


# --- OpenAPI --------------------------------------------------------------------------------------------------------


async def test_the_description_tells_errors_keys_and_media_types(api: Served) -> None:
    found = (await api.http.get("/openapi.json")).json()
    assert found["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert "HTTPValidationError" not in json.dumps(found)
    for path, operations in found["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) is (path not in ("/healthz", "/readyz"))
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]
    submit = found["paths"]["/v1/jobs"]["post"]["responses"]
    assert {"400", "401", "404", "409", "413", "422", "429", "503"} <= submit.keys()
    assert list(found["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    references = {part.split('"')[0] for part in json.dumps(found).split("#/components/schemas/")[1:]}
    assert references <= found["components"]["schemas"].keys()


async def test_a_caller_who_leaves_while_the_job_is_written_leaves_it_whole(api: Served) -> None:
    """The transaction goes on to its end: then the job is there, and needs its standard input."""
    loop, services = asyncio.get_running_loop(), api.services
    request = JobRequest(script_id=await api.upload(), stdin="text", idempotency_key="once")

    def leave(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO jobs "):
            loop.call_soon_threadsafe(submitting.cancel)

    event.listen(services.database._engine, "before_cursor_execute", leave)
    submitting = asyncio.create_task(services.jobs.submit("default", request))
    with pytest.raises(asyncio.CancelledError):
        await submitting
    (job,), _ = await services.jobs.list("default")
    assert await services.blobs.get_bytes(stdin_blob(job.id)) == b"text"
