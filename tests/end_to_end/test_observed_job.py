"""One job in a real machine over HTTP: its trace, its usage each second, and what /metrics says of it afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from belljar.app.worker import open_queue, open_worker
from belljar.control.api.admin_key import ensure_admin_key
from belljar.control.api.app import create_app
from belljar.control.api.services import open_services
from belljar.local_server import read_admin_key
from belljar.settings import Settings
from belljar.system.tracing import tracing
from support.otlp_receiver import Collector, collector

pytestmark = pytest.mark.vm

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CODE = """
import time
held = bytearray(40 << 20)
for page in range(0, len(held), 4096): held[page] = 1
until = time.monotonic() + 3.5
while time.monotonic() < until: pass
open("kept", "wb").write(b"x" * 5_000_000)
time.sleep(2.2)
"""


async def test_a_job_is_seen_from_the_request_to_its_exit(tmp_path: Path, built_images: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    settings = Settings(data_dir=data_dir, accelerator="tcg", pool="off")
    with collector() as received, tracing(received.url, 1.0):
        async with open_services(settings) as services:
            await ensure_admin_key(services.keys, data_dir)
            queue = open_queue(services)
            worker = open_worker(services, queue, "local")
            tasks = [asyncio.create_task(each.run()) for each in (queue, worker)]
            headers = {"Authorization": f"Bearer {read_admin_key(data_dir)}"}
            transport = httpx.ASGITransport(create_app(services))
            try:
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://x", headers=headers, timeout=300
                ) as http:
                    job = await _run(http)
                    _check_usage((await http.get(f"/v1/jobs/{job['id']}/metrics")).json())
                    _check_metrics((await http.get("/metrics")).text, job)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    _check_trace(received, job)


async def _run(http: httpx.AsyncClient) -> dict[str, Any]:
    body = {"code": CODE, "language": "python", "memory_mb": 192}
    response = await http.post("/v1/jobs?wait=240", json=body, headers={"traceparent": PARENT})
    job: dict[str, Any] = response.json()
    assert job["status"] == "succeeded", job
    return job


def _check_usage(series: dict[str, Any]) -> None:
    """The guest's numbers: busy for seconds, then idle; its memory and its file."""
    assert len(series["seconds"]) >= 4 and series["interval_seconds"] == 1
    assert series["vcpus"] == 1 and series["memory_limit_bytes"] == 192 << 20
    assert max(series["cpu"]) > 0.6 and min(series["cpu"]) < 0.5
    assert 40 << 20 < max(series["memory_bytes"]) < 192 << 20
    assert max(series["disk_bytes"]) - min(series["disk_bytes"]) > 4_000_000
    assert max(series["processes"]) >= 1
    assert not any(series["received_bytes"])


def _check_metrics(text: str, job: dict[str, Any]) -> None:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    source = job["machine"]["source"]

    def value(name: str, **labels: str) -> float:
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    assert value("belljar_attempts_total", outcome="succeeded") >= 1
    assert value("belljar_claims_total", kind="job") >= 1 and value("belljar_queue_seconds_count") >= 1
    assert value("belljar_machines_total", source=source) >= 1
    assert value("belljar_machine_seconds_count", source=source) >= 1
    assert value("belljar_phase_seconds_count", phase="run", source=source) >= 1
    assert value("belljar_script_bytes_total") >= len(CODE)
    assert value("belljar_node_up", node="local") == 1


def _check_trace(received: Collector, job: dict[str, Any]) -> None:
    request, attempt = received.named("POST /v1/jobs"), received.named("attempt")
    assert request.trace_id == attempt.trace_id == PARENT[3:35]
    assert {"queue", "claim", "attempt"} <= received.below(request).keys()
    phases = received.below(attempt)
    assert phases["script"].end - phases["script"].begin > 5_000_000_000
    assert attempt.attributes["belljar.job"] == job["id"]
    assert attempt.attributes["belljar.machine.source"] == job["machine"]["source"]
    assert request.begin <= attempt.begin and attempt.end <= request.end + 1_000_000_000
