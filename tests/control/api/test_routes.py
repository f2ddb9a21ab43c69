"""The responses of every route to valid requests."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from belljar import __version__
from belljar.control.jobs.blob_names import artifact_blob, stdin_blob
from belljar.control.store.nodes import Node
from belljar.control.store.schema import nodes
from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.model.job import Artifact, Job, JobError, Usage
from belljar.model.states import Status
from belljar.system.counters import increment
from support.served import Served, problem
from support.usage import usage_of


def node(**fields: object) -> Node:
    standard: dict[str, object] = {
        "id": "node-1",
        "hostname": socket.gethostname(),
        "version": "1",
        "started_at": datetime.now(UTC),
        "heartbeat_at": datetime.now(UTC),
        "vcpus": 4,
        "memory_mb": 4096,
        "largest_memory_mb": 4000,
        "vcpus_free": 3,
        "memory_free_mb": 3000,
        "running_jobs": 1,
    }
    return Node.model_validate({**standard, **fields})


async def test_a_script_is_uploaded_looked_at_listed_and_deleted(api: Served) -> None:
    form = {"language": "python", "entrypoint": ""}
    response = await api.http.post("/v1/scripts", files={"script": ("hello.py", b"print(1)")}, data=form)
    assert response.status_code == 201
    script = response.json()
    assert script.items() >= {"name": "hello.py", "language": "python", "entrypoint": "hello.py"}.items()
    assert (await api.http.get(f"/v1/scripts/{script['script_id']}")).json() == script
    assert (await api.http.get("/v1/scripts")).json() == {"scripts": [script], "next_cursor": None}
    assert (await api.http.delete(f"/v1/scripts/{script['script_id']}")).status_code == 204
    problem(await api.http.get(f"/v1/scripts/{script['script_id']}"), 404, "not_found")


async def test_a_scripts_disk_stays_while_a_job_of_it_waits(api: Served) -> None:
    script_id = await api.upload()
    await api.http.post(f"/v1/scripts/{script_id}/run")
    await api.http.delete(f"/v1/scripts/{script_id}")
    assert (await api.services.scripts.disks.path(script_id)).exists()


async def test_a_script_is_run_with_and_without_options(api: Served) -> None:
    script_id = await api.upload()
    plain = await api.http.post(f"/v1/scripts/{script_id}/run")
    assert plain.status_code == 202
    assert plain.json()["job_id"] == plain.json()["id"]
    job = (await api.http.post(f"/v1/scripts/{script_id}/run", json={"args": ["a"], "memory_mb": 300})).json()
    assert (job["args"], job["memory_mb"], job["script_id"], job["status"]) == (["a"], 300, script_id, "queued")


async def test_a_job_has_every_field_that_the_contract_names(api: Served) -> None:
    job = await api.submit(labels={"a": "b"}, env={"X": "y"}, stdin="é", priority=5, disk_mb=32, timeout_seconds=9)
    names = """id script_id status exit_code signal error attempt created_at started_at finished_at timings usage
        machine worker args env image vcpus memory_mb disk_mb timeout_seconds egress artifacts max_attempts priority
        labels idempotency_key"""
    assert set(names.split()) <= job.keys()
    assert set(job["timings"]) >= {"queue_ms", "machine_ms", "run_ms"}
    assert set(job["usage"]) >= {"cpu_seconds", "max_memory_mb", "rx_bytes", "tx_bytes"}
    assert (job["labels"], job["env"], job["stdin_bytes"], job["disk_mb"]) == ({"a": "b"}, {"X": "y"}, 2, 32)
    assert await api.services.blobs.get_bytes(stdin_blob(job["id"])) == b"\xc3\xa9"
    assert (await api.http.get(f"/v1/jobs/{job['id']}")).json() == job


async def test_jobs_are_listed_filtered_and_paged(api: Served) -> None:
    ids = [(await api.submit(labels={"n": str(number)}))["id"] for number in range(3)]
    page = (await api.http.get("/v1/jobs", params={"limit": 2})).json()
    assert [job["id"] for job in page["jobs"]] == ids[:0:-1]
    rest = (await api.http.get("/v1/jobs", params={"cursor": page["next_cursor"]})).json()
    assert ([job["id"] for job in rest["jobs"]], rest["next_cursor"]) == (ids[:1], None)
    found = (await api.http.get("/v1/jobs", params={"label": "n=1", "status": "queued"})).json()["jobs"]
    assert [job["id"] for job in found] == [ids[1]]
    assert (await api.http.get("/v1/jobs", params={"status": "running"})).json()["jobs"] == []


async def test_an_idempotency_key_gives_the_first_job_back(api: Served) -> None:
    first = await api.submit(idempotency_key="k", stdin="a")
    assert await api.submit(idempotency_key="k", stdin_base64="YQ==", priority=0) == first
    assert len((await api.http.get("/v1/jobs")).json()["jobs"]) == 1


@pytest.mark.parametrize("other", [{"stdin": "b"}, {"stdin": "a", "priority": 1}, {"stdin": "a", "code": "print(2)"}])
async def test_an_idempotency_key_of_another_request_is_refused(api: Served, other: dict[str, Any]) -> None:
    first = await api.submit(idempotency_key="k", stdin="a")
    body = {"code": "print(1)", "language": "python", "idempotency_key": "k", **other}
    found = problem(await api.http.post("/v1/jobs", json=body), 409, "conflict")
    assert found["job_id"] == first["id"]
    assert "request_sha256" not in first
    assert len((await api.http.get("/v1/jobs")).json()["jobs"]) == 1


async def test_an_idempotency_key_is_of_its_project(api: Served) -> None:
    first = await api.submit(idempotency_key="k")
    async with await api.caller_of("other") as other:
        body = {"code": "print(2)", "language": "python", "idempotency_key": "k"}
        assert (await other.post("/v1/jobs", json=body)).json()["id"] != first["id"]


async def test_submits_at_once_with_one_idempotency_key_make_one_job(api: Served) -> None:
    jobs = await asyncio.gather(*(api.submit(idempotency_key="k", stdin="x") for _ in range(8)))
    assert len({job["id"] for job in jobs}) == 1
    kept = list((api.services.settings.data_dir / "blobs/jobs").rglob("stdin"))
    assert [path.parent.name for path in kept] == [jobs[0]["id"]]


async def test_different_submits_at_once_with_one_idempotency_key_make_one_job_and_conflicts(api: Served) -> None:
    def body(n: int) -> dict[str, Any]:
        return {"code": "print(1)", "language": "python", "idempotency_key": "k", "stdin": f"{n}"}

    answers = await asyncio.gather(*(api.http.post("/v1/jobs", json=body(n)) for n in range(6)))
    assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409, 409]
    assert len(list((api.services.settings.data_dir / "blobs/jobs").rglob("stdin"))) == 1


async def test_waiting_ends_when_the_job_does(api: Served) -> None:
    job = await api.submit()
    waiting = asyncio.create_task(api.http.get(f"/v1/jobs/{job['id']}", params={"wait": 60}))
    held = await api.begin()
    error = JobError(code="out_of_memory", message="too little")
    await api.end(held, Status.FAILED, exit_code=1, error=error, usage=Usage(cpu_seconds=1.5))
    found = (await waiting).json()
    assert (found["status"], found["exit_code"], found["error"]) == ("failed", 1, error.model_dump())
    assert (found["usage"]["cpu_seconds"], found["worker"], found["attempt"]) == (1.5, "w1", 1)


async def test_a_wait_returns_the_unfinished_job_after_its_timeout(api: Served) -> None:
    response = await api.http.post("/v1/jobs", params={"wait": 0.05}, json={"code": "x", "language": "python"})
    assert (response.status_code, response.json()["status"]) == (202, "queued")


async def test_submitting_and_waiting_answers_200_when_the_job_has_ended(api: Served) -> None:
    body = {"code": "x", "language": "python"}
    submitting = asyncio.create_task(api.http.post("/v1/jobs", params={"wait": 60}, json=body))
    async with asyncio.timeout(10):
        while not (await api.services.job_store.counts()).get(Status.QUEUED):
            await asyncio.sleep(0.005)
    await api.end(await api.begin())
    response = await submitting
    assert (response.status_code, response.json()["status"]) == (200, "succeeded")


async def test_cancelling_ends_what_waits_and_asks_for_what_runs(api: Served) -> None:
    waiting = await api.submit()
    assert (await api.http.post(f"/v1/jobs/{waiting['id']}/cancel")).json()["status"] == "cancelled"
    await api.submit()
    held = await api.begin()
    cancelling = (await api.http.post(f"/v1/jobs/{held.id}/cancel")).json()
    assert (cancelling["status"], cancelling["cancel_requested"]) == ("running", True)
    await api.end(held, Status.CANCELLED)
    assert (await api.http.post(f"/v1/jobs/{held.id}/cancel")).json()["status"] == "cancelled"


async def with_artifacts(api: Served, *named: tuple[str, bytes]) -> Job:
    await api.submit(artifacts=["**"])
    job = await api.begin()
    for number, (_, data) in enumerate(named):
        await api.services.blobs.put_bytes(artifact_blob(job.id, number), data)
    await api.end(job, kept_artifacts=tuple(Artifact(path=path, size_bytes=len(data)) for path, data in named))
    return job


async def test_artifacts_are_listed_and_downloaded_never_shown(api: Served) -> None:
    job = await with_artifacts(api, ("out/a é.html", b"<script>"), ("big", bytes(700_000)))
    listed = (await api.http.get(f"/v1/jobs/{job.id}/artifacts")).json()["artifacts"]
    assert listed == [{"path": "out/a é.html", "size_bytes": 8}, {"path": "big", "size_bytes": 700_000}]
    page = await api.http.get(f"/v1/jobs/{job.id}/artifacts/out/a é.html")
    assert page.content == b"<script>"
    assert page.headers["content-type"] == "application/octet-stream"
    assert page.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20%C3%A9.html"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert (await api.http.get(f"/v1/jobs/{job.id}/artifacts/big")).content == bytes(700_000)
    problem(await api.http.get(f"/v1/jobs/{job.id}/artifacts/nothing"), 404, "not_found")


@pytest.mark.parametrize("path", ["../../admin.key", "/etc/passwd", 'a"\r\nX: y', "a\nb"])
async def test_a_guests_word_for_a_path_is_only_a_word(api: Served, path: str) -> None:
    job = await with_artifacts(api, (path, b"harmless"))
    response = await api.http.get(f"/v1/jobs/{job.id}/artifacts/{quote(path, safe='')}")
    assert (response.status_code, response.content) == (200, b"harmless")
    assert "x" not in response.headers


async def test_images_are_listed_with_the_digest_of_every_part(api: Served) -> None:
    (image,) = (await api.http.get("/v1/images")).json()["images"]
    assert image["name"] == "python"
    for part in ("kernel", "initramfs", "root"):
        assert len(image[part]["sha256"]) == 64


async def test_nodes_are_listed(api: Served) -> None:
    assert (await api.http.get("/v1/nodes")).json() == {"nodes": []}
    await api.services.nodes.heartbeat(node())
    (found,) = (await api.http.get("/v1/nodes")).json()["nodes"]
    assert (found["id"], found["alive"], found["memory_free_mb"]) == ("node-1", True, 3000)


async def test_healthy_is_the_process_and_ready_is_a_worker_that_lives(api: Served) -> None:
    async with api.caller() as anonymous:
        assert (await anonymous.get("/healthz")).json() == {"status": "ok", "version": __version__}
        assert "worker" in problem(await anonymous.get("/readyz"), 503, "host_error")["detail"]
        await api.services.nodes.heartbeat(node())
        assert (await anonymous.get("/readyz")).json() == {"status": "ok"}
        async with api.services.database.write() as connection:
            await connection.execute(nodes.update().values(heartbeat_at=datetime(2026, 1, 1, tzinfo=UTC)))
        problem(await anonymous.get("/readyz"), 503, "host_error")


async def test_a_job_that_no_living_node_could_run_is_refused(api: Served) -> None:
    await api.services.nodes.heartbeat(node())
    body = {"code": "x", "language": "python", "memory_mb": 4001}
    found = problem(await api.http.post("/v1/jobs", json=body), 422, "invalid_option")
    assert (found["option"], found["limit"]) == ("memory_mb", 4000)


async def test_the_usage_of_a_jobs_machine_is_returned_as_arrays(api: Served) -> None:
    submitted = await api.submit(memory_mb=300)
    path = f"/v1/jobs/{submitted['id']}/metrics"
    empty = (await api.http.get(path)).json()
    assert (empty["seconds"], empty["attempt"], empty["memory_limit_bytes"]) == ([], 0, 300 << 20)
    job = await api.begin()
    lease = LeaseKey(job.id, 1, NodeIdentity("w1", ""))
    assert await api.services.usage_series.put_of_job(lease, usage_of(1.0, 2.5))
    found = (await api.http.get(path)).json()
    assert (found["job_id"], found["attempt"], found["seconds"], found["cpu"]) == (job.id, 1, [1, 2.5], [0, 0])
    await api.end(job)
    assert (await api.http.get(path)).json() == found
    async with await api.caller_of("other") as other:
        problem(await other.get(path), 404, "not_found")


async def test_metrics_count_jobs_by_status(api: Served) -> None:
    await api.submit()
    await api.submit()
    await api.begin()
    await api.services.nodes.heartbeat(node())
    response = await api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    lines = response.text.splitlines()
    for line in (
        'belljar_jobs{status="queued"} 1.0',
        'belljar_jobs{status="running"} 1.0',
        'belljar_jobs{status="lost"} 0.0',
        'belljar_node_running_jobs{node="node-1"} 1.0',
    ):
        assert line in lines


async def test_metrics_count_outcomes_and_failures_of_the_background(api: Served) -> None:
    async def count_all() -> list[str]:
        return (await api.http.get("/metrics")).text.splitlines()

    increment("belljar_attempts", outcome="succeeded")
    increment("belljar_background_failures", task="test_metrics")
    lines = await count_all()
    assert 'belljar_background_failures_total{task="test_metrics"} 1.0' in lines
    assert any(line.startswith('belljar_attempts_total{outcome="succeeded"} ') for line in lines)
    increment("belljar_background_failures", task="test_metrics")
    assert 'belljar_background_failures_total{task="test_metrics"} 2.0' in await count_all()


async def test_the_description_is_served(api: Served) -> None:
    described = (await api.http.get("/openapi.json")).json()
    assert described["info"]["version"] == __version__
    upload = described["paths"]["/v1/scripts"]["post"]["requestBody"]["content"]
    assert upload["multipart/form-data"]["schema"]["required"] == ["script"]


async def test_a_code_and_its_upload_are_the_same_script(api: Served, tmp_path: Path) -> None:
    files = {"script": ("main.py", b"print(1)")}
    script_id = (await api.http.post("/v1/scripts", files=files)).json()["script_id"]
    assert (await api.submit())["script_id"] == script_id
    assert len(list((tmp_path / "blobs/scripts").iterdir())) == 1
