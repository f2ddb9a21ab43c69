"""Quotas over HTTP: who sets them, what is refused and with which headers, and what /v1/usage shows."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from belljar.control.projects.scopes import Role
from belljar.model.job import Artifact, LogInfo
from belljar.model.quotas import CountedQuota, ProjectQuotas
from belljar.system.counters import counter_value
from support.served import Served, problem

JOB = {"code": "print(1)", "language": "python"}


async def limited(api: Served, **quotas: Any) -> httpx.AsyncClient:
    """Return a client of a new project with these quotas."""
    caller = await api.caller_of("acme")
    response = await api.http.put("/v1/projects/acme/quotas", json=quotas)
    assert response.status_code == 200, response.text
    return caller


async def submit(caller: httpx.AsyncClient, **options: Any) -> httpx.Response:
    return await caller.post("/v1/jobs", json={**JOB, **options})


async def use_of(caller: httpx.AsyncClient) -> dict[str, Any]:
    """Return each quota of /v1/usage by its name."""
    usage = (await caller.get("/v1/usage")).json()
    return {each["quota"]: each for each in usage["quotas"]}


async def test_quotas_are_set_changed_and_shown(api: Served) -> None:
    caller = await limited(api, max_running_jobs=4, max_jobs_per_day="unlimited", max_egress="PyPI.org, b.example:443")
    shown = (await caller.get("/v1/projects/acme/quotas")).json()
    assert shown["project"] == "acme"
    assert (
        shown["quotas"]
        == ProjectQuotas(
            max_running_jobs=4, max_jobs_per_day="unlimited", max_egress="pypi.org,b.example:443"
        ).model_dump()
    )
    assert (shown["limits"]["max_running_jobs"], shown["limits"]["max_jobs_per_day"]) == (4, None)
    changed = await api.http.patch("/v1/projects/acme/quotas", json={"max_queued_jobs": 7, "max_egress": None})
    assert changed.json()["quotas"].items() >= {"max_running_jobs": 4, "max_queued_jobs": 7, "max_egress": None}.items()
    replaced = await api.http.put("/v1/projects/acme/quotas", json={})
    assert set(replaced.json()["quotas"].values()) == {None}


@pytest.mark.parametrize(
    "body",
    [
        {"max_running_jobs": -1},
        {"max_running_jobs": True},
        {"max_running_jobs": 1.5},
        {"max_running_jobs": "4"},
        {"max_running_jobs": "none"},
        {"max_running_jobs": 10**16},
        {"max_vcpus": 0},
        {"max_vcpus": "unlimited"},
        {"max_timeout_seconds": 0},
        {"keep_jobs_days": -1},
        {"max_egress": "localhost"},
        {"max_egress": ""},
        {"max_boxes": 1},
        {"project": "other"},
    ],
)
async def test_invalid_quotas_are_refused_and_change_nothing(api: Served, body: dict[str, Any]) -> None:
    await limited(api, max_running_jobs=3)
    for method in ("PUT", "PATCH"):
        problem(await api.http.request(method, "/v1/projects/acme/quotas", json=body), 422, "invalid_option")
    assert (await api.http.get("/v1/projects/acme/quotas")).json()["quotas"]["max_running_jobs"] == 3


async def test_only_an_operator_sets_quotas_and_other_projects_do_not_exist(api: Served) -> None:
    caller, other = await limited(api, max_running_jobs=3), await api.caller_of("other")
    for method in ("PUT", "PATCH"):
        problem(
            await caller.request(method, "/v1/projects/acme/quotas", json={"max_running_jobs": 9}), 403, "forbidden"
        )
    foreign = problem(await other.get("/v1/projects/acme/quotas"), 404, "not_found")["detail"]
    missing = problem(await other.get("/v1/projects/nobody/quotas"), 404, "not_found")["detail"]
    assert foreign == missing.replace("nobody", "acme")
    problem(await api.http.put("/v1/projects/nobody/quotas", json={}), 404, "not_found")
    assert (await use_of(caller))["max_running_jobs"]["limit"] == 3


async def test_a_viewer_sees_the_use_of_its_project_alone(api: Served) -> None:
    await submit(await limited(api, max_queued_jobs=5))
    _, secret = await api.services.keys.create("acme", "viewer", role=Role.VIEWER)
    assert (await use_of(api.caller(secret)))["max_queued_jobs"]["used"] == 1
    assert (await use_of(await api.caller_of("other")))["max_queued_jobs"] == {
        "quota": "max_queued_jobs", "limit": None, "used": 0, "left": None, "resets_at": None,
    }  # fmt: skip
    header = {"Belljar-Project": "acme"}
    assert (await api.http.get("/v1/usage", headers=header)).json()["project"] == "acme"
    problem(await api.http.get("/v1/usage", params={"days": 0}), 422, "invalid_option")
    problem(await api.http.get("/v1/usage", params={"days": 401}), 422, "invalid_option")


async def test_a_job_over_the_queue_is_refused_and_leaves_nothing(api: Served) -> None:
    caller = await limited(api, max_queued_jobs=2)
    first = (await submit(caller, idempotency_key="k")).json()
    assert (await submit(caller)).status_code == 202
    before = counter_value("belljar_quota_refusals", quota="max_queued_jobs")
    refused = await submit(caller, stdin="x")
    body = problem(refused, 429, "quota_exceeded")
    assert (body["quota"], body["limit"], body["used"]) == ("max_queued_jobs", 2, 2)
    assert "2 queued jobs; the maximum is 2: wait" in body["detail"] and "Retry-After" not in refused.headers
    assert counter_value("belljar_quota_refusals", quota="max_queued_jobs") == before + 1
    assert (await submit(caller, idempotency_key="k")).json()["id"] == first["id"]  # it was accepted
    await caller.post(f"/v1/jobs/{first['id']}/cancel")
    assert (await submit(caller)).status_code == 202
    assert len((await caller.get("/v1/jobs")).json()["jobs"]) == 3


async def test_the_transaction_decides_where_requests_race(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await limited(api, max_queued_jobs=1)
    quotas = api.services.quotas

    async def unchecked(project: str) -> Any:
        return await quotas.limits(project)

    monkeypatch.setattr(quotas, "check_submission", unchecked)
    assert (await submit(caller, idempotency_key="k")).status_code == 202
    problem(await submit(caller, stdin="x"), 429, "quota_exceeded")
    assert (await submit(caller, idempotency_key="k")).status_code == 202
    assert len((await caller.get("/v1/jobs")).json()["jobs"]) == 1
    assert not [path for path in (api.services.settings.paths.blobs / "jobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize(("quota", "window"), [("max_jobs_per_minute", 60), ("max_jobs_per_day", 86_400)])
async def test_submissions_in_a_time_are_limited_and_headers_tell(api: Served, quota: str, window: int) -> None:
    caller = await limited(api, **{quota: 1000})
    response = await submit(caller)
    assert response.headers["RateLimit-Policy"] == f'"{quota}";q=1000;w={window}'
    found = re.fullmatch(rf'"{quota}";r=(\d+);t=(\d+)', response.headers["RateLimit"])
    assert found is not None and 999 <= int(found[1]) <= 1000 and 1 <= int(found[2]) <= window  # a minute may pass
    await api.http.put("/v1/projects/acme/quotas", json={quota: 0})
    refused = await submit(caller)
    body = problem(refused, 429, "quota_exceeded")
    assert body["quota"] == quota and 1 <= body["retry_after"] <= window
    assert refused.headers["Retry-After"] == str(body["retry_after"])
    assert refused.headers["RateLimit-Policy"] == f'"{quota}";q=0;w={window}'
    assert refused.headers["RateLimit"] == f'"{quota}";r=0;t={body["retry_after"]}'


async def test_without_limits_there_are_no_headers(api: Served) -> None:
    response = await submit(api.http)
    assert response.status_code == 202 and not [name for name in response.headers if "ratelimit" in name.lower()]


async def test_a_day_that_is_used_up_refuses_until_midnight(api: Served) -> None:
    caller = await limited(api, max_vcpu_seconds_per_day=10)
    job = (await submit(caller)).json()
    await api.services.database.writing(
        lambda connection: connection.exec_driver_sql("UPDATE project_usage SET vcpu_ms = 10500")
    )
    body = problem(await submit(caller), 429, "quota_exceeded")
    assert (body["quota"], body["limit"], body["used"]) == ("max_vcpu_seconds_per_day", 10, 10.5)
    assert body["retry_after"] > 0 and "midnight" in body["detail"]
    waiting = (await caller.get(f"/v1/jobs/{job['id']}")).json()["waiting_for"]
    assert waiting == {"quota": "max_vcpu_seconds_per_day", "limit": 10, "used": 10.5}


async def test_a_queued_job_tells_that_it_waits_for_a_running_one(api: Served) -> None:
    caller = await limited(api, max_running_jobs=1)
    first, second = [(await submit(caller)).json() for _ in range(2)]
    assert "waiting_for" not in (await caller.get(f"/v1/jobs/{second['id']}")).json()
    job = await api.begin()
    assert job.id == first["id"]
    waiting = (await caller.get(f"/v1/jobs/{second['id']}")).json()["waiting_for"]
    assert waiting == {"quota": "max_running_jobs", "limit": 1, "used": 1}
    assert "waiting_for" not in (await caller.get(f"/v1/jobs/{first['id']}")).json()
    text = (await api.http.get("/metrics")).text
    assert 'belljar_projects_at_quota{quota="max_running_jobs"} 1.0' in text and "acme" not in text
    await api.end(job)
    assert "waiting_for" not in (await caller.get(f"/v1/jobs/{second['id']}")).json()
    assert (await api.begin()).id == second["id"]


async def test_storage_counts_scripts_logs_and_artifacts(api: Served) -> None:
    caller = await limited(api, max_storage_mb=3)
    script = await caller.post("/v1/scripts", files={"script": ("a.py", b"#" * 1000)})
    run = f"/v1/scripts/{script.json()['script_id']}/run"
    await caller.post(run)
    kept = (Artifact(path="x", size_bytes=2 << 20),)
    await api.end(await api.begin(), kept_artifacts=kept, logs=LogInfo(stdout_bytes=1 << 20, stderr_bytes=24))
    used = (await use_of(caller))["max_storage_mb"]["used"] * (1 << 20)
    assert used == pytest.approx((3 << 20) + 1024)
    for refused in (await caller.post(run), await caller.post("/v1/scripts", files={"script": ("b.py", b"print(2)")})):
        body = problem(refused, 429, "quota_exceeded")
        assert body["quota"] == "max_storage_mb" and "delete scripts" in body["detail"]
    again = await caller.post("/v1/scripts", files={"script": ("a.py", b"#" * 1000)})  # it is stored already
    assert again.status_code == 201
    assert (await submit(await api.caller_of("other"))).status_code == 202


@pytest.mark.parametrize(
    ("quotas", "options", "message"),
    [
        ({"max_vcpus": 1}, {"vcpus": 2}, "vcpus is 2; the project's maximum is 1 (quota max_vcpus)"),
        ({"max_memory_mb": 300}, {"memory_mb": 301}, "memory_mb is 301; the project's maximum is 300"),
        ({"max_disk_mb": 0}, {"disk_mb": 32}, "disk_mb is 32; the project's maximum is 0"),
        ({"max_timeout_seconds": 5}, {"timeout_seconds": 6}, "timeout_seconds is 6; the project's maximum is 5"),
        ({"max_egress": "pypi.org"}, {"egress": "pypi.org,evil.example"}, "egress evil.example exceeds"),
    ],
)
async def test_the_largest_job_and_the_egress_of_a_project_are_limited(
    api: Served, quotas: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    caller = await limited(api, **quotas)
    assert message in problem(await submit(caller, **options), 422, "invalid_option")["detail"]
    response = await submit(caller)
    assert response.status_code == 202 and response.json()["timeout_seconds"] <= 60


async def test_usage_shows_every_quota_and_the_last_days(api: Served) -> None:
    caller = await limited(api, max_jobs_per_day=10)
    await submit(caller)
    await api.end(await api.begin())
    usage = (await caller.get("/v1/usage", params={"days": 3})).json()
    assert [each["quota"] for each in usage["quotas"]] == [quota.value for quota in CountedQuota]
    at = datetime.fromisoformat(usage["at"])
    assert abs((at - datetime.now(UTC)).total_seconds()) < 3600
    days = usage["days"]
    assert len(days) == 3 and days[0]["date"] == at.date().isoformat()
    assert sum(day["jobs"] for day in days) == 1 and all(day["vcpu_seconds"] >= 0 for day in days)
    of_day = next(each for each in usage["quotas"] if each["quota"] == "max_jobs_per_day")
    assert of_day["left"] == 10 - of_day["used"]
    resets_at = datetime.fromisoformat(of_day["resets_at"])
    assert (resets_at.hour, resets_at.minute, resets_at.second) == (0, 0, 0) and resets_at > at
