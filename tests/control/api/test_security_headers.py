"""Security headers on every response, CORS, and addresses that proxies claim."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from belljar.control.api.cors import Cors
from belljar.control.api.security_headers import HEADERS
from belljar.control.api.server import Server
from belljar.model.errors import InvalidOption
from belljar.settings import load_settings
from support.served import Served, problem, served

PAGE = "https://app.example"


def strict(response: httpx.Response) -> None:
    for name, value in HEADERS.items():
        assert response.headers[name] == value, name


async def test_every_response_has_the_headers(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object, **_more: object) -> None:
        raise RuntimeError("broken")

    for path in ("/healthz", "/v1/jobs", "/v1/none", "/openapi.json"):
        strict(await api.http.get(path))
    strict(await api.http.head("/v1/jobs"))
    strict(await api.caller().get("/v1/jobs"))
    strict(await api.http.post("/v1/jobs", content=b"{"))
    strict(await api.http.options("/v1/jobs", headers={"Origin": PAGE, "Access-Control-Request-Method": "GET"}))
    monkeypatch.setattr(api.services.jobs, "list", fail)
    with structlog.testing.capture_logs():
        strict(await api.http.get("/v1/jobs"))


async def test_an_artifact_of_a_job_cannot_run_as_a_page(api: Served) -> None:
    policy = (await api.http.get("/v1/jobs")).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy.split("; ")
    assert "frame-ancestors 'none'" in policy


async def test_hsts_is_sent_over_tls_only_and_not_for_this_machine(api: Served) -> None:
    for url, expected in (
        ("http://runner.example/healthz", None),
        ("https://runner.example/healthz", "max-age=31536000"),
        ("https://localhost:8443/healthz", None),
        ("https://[::1]:8443/healthz", None),
    ):
        assert (await api.http.get(url)).headers.get("strict-transport-security") == expected, url


async def test_an_injected_fault_answers_a_plain_problem_and_the_log_has_the_trace(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_more: object) -> None:
        marker = "MARK-LOCAL"
        raise RuntimeError(f"MARK-MESSAGE at /secret/place {marker}")

    monkeypatch.setattr(api.services.jobs, "list", fail)
    with structlog.testing.capture_logs() as logs:
        response = await api.http.get("/v1/jobs")
    body = problem(response, 500, "internal_error")
    assert body.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert "MARK" not in response.text and "Traceback" not in response.text and "/secret" not in response.text
    assert body["request_id"] == response.headers["x-request-id"]
    (event,) = [log for log in logs if log["event"] == "unhandled_exception"]
    assert event["exc_info"]
    assert body["request_id"] in body["detail"]


# --- CORS -----------------------------------------------------------------------------------------------------------


async def test_cors_is_off_by_default(api: Served) -> None:
    preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    body = problem(await api.http.options("/v1/jobs", headers=preflight), 403, "forbidden")
    assert "cors_origins" in body["detail"]
    response = await api.http.get("/v1/jobs", headers={"Origin": PAGE})
    assert not [name for name in response.headers if name.startswith("access-control")]


async def test_an_allowed_origin_is_answered_before_authentication_and_others_are_not(tmp_path: Path) -> None:
    async with served(tmp_path, cors_origins=[PAGE]) as api:
        preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answer = await api.caller().options("/v1/jobs", headers=preflight)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        for caller, status in ((api.http, 200), (api.caller(), 401)):
            response = await caller.get("/v1/jobs", headers={"Origin": PAGE})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "X-Request-Id" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"
        for origin in ("https://app.example.evil", "http://app.example", "https://app.example:8443", "null", ""):
            response = await api.http.get("/v1/jobs", headers={"Origin": origin})
            assert "access-control-allow-origin" not in response.headers, origin
            assert response.headers["vary"] == "Origin"
            problem(await api.http.options("/v1/jobs", headers={**preflight, "Origin": origin}), 403, "forbidden")


@pytest.mark.parametrize(
    "origin",
    [
        *("*", "null", "", "app.example", "https://app.example/", "https://*.example", "https://App.example"),
        *("https://app.example:443", "http://app.example:80", "https://a@app.example", "https://app.example:99999"),
        "ftp://a.example",
    ],
)
def test_an_origin_that_is_not_exact_is_refused(origin: str) -> None:
    with pytest.raises(InvalidOption, match="cors_origins"):
        Cors([origin])


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000", "https://[::1]:8443", "http://192.0.2.1"])
def test_an_exact_origin_is_taken(origin: str) -> None:
    Cors([origin])


# --- proxies --------------------------------------------------------------------------------------------------------


async def address_seen(api: Served, **headers: str) -> dict[str, Any]:
    """The address in the audit log of a refused request over a socket."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        running = Server(api.services)
        task = asyncio.create_task(running.serve([listener]))
        while not running.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client:
            await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/jobs", headers=headers)
        running.should_exit = True
        async with asyncio.timeout(30):
            await task
    await api.services.auditor.flush()
    record: dict[str, Any] = (await api.http.get("/v1/audit", params={"action": "access.refuse"})).json()["audit"][0]
    return record


async def test_a_claimed_address_is_believed_of_trusted_proxies_only(
    api: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    claim = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    assert (await address_seen(api, **claim))["address"] == "127.0.0.1"
    async with served(tmp_path / "proxied", trusted_proxies=["127.0.0.0/8"]) as proxied:
        assert (await address_seen(proxied, **claim))["address"] == "203.0.113.9"


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", ""])
def test_a_proxy_is_an_address_or_a_network(tmp_path: Path, proxy: str) -> None:
    with pytest.raises(InvalidOption, match="trusted_proxies"):
        load_settings(data_dir=tmp_path, trusted_proxies=[proxy])
