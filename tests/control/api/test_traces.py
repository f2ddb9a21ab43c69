"""Traces of requests, and of the jobs that they submit."""

from __future__ import annotations

import json

import pytest
import structlog

from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.system import tracing
from support.control_plane import open_queue
from support.otlp_receiver import collector
from support.served import Served

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE = PARENT[3:35]


@pytest.fixture(autouse=True)
def _json_log() -> None:
    """As a server's: the log of a test would print every local variable of a traceback."""
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(),
    )


async def test_a_request_is_a_span_and_its_job_goes_on_with_the_trace(
    api: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"code": "print(1)", "language": "python"}
    with collector() as received, tracing.tracing(received.url, 1.0):
        response = await api.http.post("/v1/jobs", json=body, headers={"traceparent": PARENT})
        job = response.json()
        await api.http.get("/v1/jobs/nonsense")
        await api.http.get("/metrics")
        services = api.services
        queue = open_queue(services.settings, services.database, services.blobs, services.changes)
        room = ClaimRequest(vcpus=8, memory_mb=8192)
        assignment = await queue.link.claim(NodeIdentity("n1", "x"), room, 0)
    assert assignment is not None and assignment.job.traceparent == job["traceparent"]
    request, missing = received.named("POST /v1/jobs"), received.named("GET /v1/jobs/{job_id}")
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT[36:52])
    assert job["traceparent"] == f"00-{TRACE}-{request.span_id}-01"
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/jobs",
        "http.response.status_code": 202,
        "belljar.request": response.headers["x-request-id"],
    }
    assert missing.trace_id != TRACE and not missing.parent_id and not missing.is_error
    assert {"queue", "claim"} <= received.below(request).keys()
    assert not any("metrics" in each.name for each in received.spans)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    (submitted,) = [each for each in events if each["event"] == "job_submitted"]
    assert submitted["job"] == job["id"] and submitted["trace_id"] == TRACE
    assert submitted["request_id"] == response.headers["x-request-id"]


async def test_off_a_job_has_no_trace_and_a_traceparent_is_no_error(api: Served) -> None:
    body = {"code": "print(1)", "language": "python"}
    response = await api.http.post("/v1/jobs", json=body, headers={"traceparent": PARENT})
    assert response.status_code == 202 and response.json()["traceparent"] is None


async def test_a_failure_of_the_server_is_a_failed_span(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(api.services.jobs, "get", fail)
    monkeypatch.setattr(api.services.jobs, "wait", fail)
    with collector() as received, tracing.tracing(received.url, 1.0):
        await api.http.get("/v1/jobs/job_1", headers={"traceparent": "nonsense"})
    span = received.named("GET /v1/jobs/{job_id}")
    assert span.is_error and span.attributes["http.response.status_code"] == 500
    assert "a bug" not in str(received.spans)
