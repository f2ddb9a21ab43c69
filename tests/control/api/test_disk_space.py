"""With low disk space new work is refused before the disk is full; everything else works."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.control.store.maintenance import SqlMaintenance
from control.api.test_routes import node
from support.registered_images import register
from support.served import problem, served


@pytest.fixture
def filler(few_inodes: Path) -> Path:
    return few_inodes / "filler"


def fill(filler: Path, leave_bytes: int) -> None:
    about = os.statvfs(filler.parent)
    filler.write_bytes(bytes(about.f_bavail * about.f_frsize - leave_bytes))


async def test_new_work_is_refused_in_time_and_the_rest_goes_on(few_inodes: Path, filler: Path) -> None:
    register(few_inodes, "python")
    async with served(few_inodes, min_free_disk_percent=20, min_free_inodes=0) as api:
        script_id = await api.upload()
        job = await api.submit(idempotency_key="once")
        await api.services.nodes.heartbeat(node())
        assert (await api.http.get("/readyz")).status_code == 200
        fill(filler, 1 << 20)

        code = {"code": "print(2)", "language": "python"}
        for refused in (
            await api.http.post("/v1/jobs", json=code),
            await api.http.post(f"/v1/scripts/{script_id}/run"),
            await api.http.post("/v1/scripts", files={"script": ("hello.py", b"print(2)")}),
        ):
            body = problem(refused, 507, "disk_full")
            assert body["free_bytes"] < body["reserve_bytes"]
            assert str(few_inodes) not in refused.text
        assert "MB are free" in problem(await api.http.get("/readyz"), 503, "disk_full")["detail"]
        metrics = (await api.http.get("/metrics")).text
        assert "belljar_disk_low 1.0" in metrics and "belljar_disk_free_bytes{" in metrics

        again = await api.http.post("/v1/jobs", json={**code, "code": "print(1)", "idempotency_key": "once"})
        assert again.json()["id"] == job["id"]
        assert (await api.http.get(f"/v1/jobs/{job['id']}")).status_code == 200
        running = await api.begin()
        await api.end(running)
        assert (await api.http.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "succeeded"

        filler.unlink()
        assert (await api.http.get("/readyz")).json() == {"status": "ok"}
        assert "belljar_disk_low 0.0" in (await api.http.get("/metrics")).text
        await api.submit()


async def test_a_scratch_disk_that_no_node_could_hold_is_refused_with_the_number(tmp_path: Path) -> None:
    register(tmp_path, "python")
    async with served(tmp_path) as api:
        await api.services.nodes.heartbeat(node(largest_disk_mb=116, heartbeat_at=datetime.now(UTC)))
        body = {"code": "print(1)", "language": "python", "disk_mb": 512}
        refused = problem(await api.http.post("/v1/jobs", json=body), 422, "invalid_option")
        assert (refused["option"], refused["limit"]) == ("disk_mb", 116)
        assert "disk_mb is 512" in refused["detail"]
        assert (await api.http.post("/v1/jobs", json={**body, "disk_mb": 100})).status_code == 202


async def test_metrics_tell_what_maintenance_has_done(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        records = SqlMaintenance(api.services.database)
        for count, error in ((2, None), (1, None), (0, "no")):
            await records.begin("jobs")
            await records.end("jobs", removed_count=count, removed_bytes=10 * count, error=error, done_until=None)
        metrics = (await api.http.get("/metrics")).text
    assert 'belljar_maintenance_removed_total{service="jobs"} 3.0' in metrics
    assert 'belljar_maintenance_removed_bytes_total{service="jobs"} 30.0' in metrics
    assert 'belljar_maintenance_failures_total{service="jobs"} 1.0' in metrics
    assert 'belljar_maintenance_last_success_timestamp_seconds{service="jobs"}' in metrics
