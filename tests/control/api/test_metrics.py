"""/metrics: what it counts, its format, and that the alerts and the dashboard ask for what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from belljar.control.store.schema import jobs
from support.paths import ROOT
from support.served import Served

MONITORING = ROOT / "monitoring"
#: Suffixes of a family's samples.
_SUFFIX = re.compile(r"_(total|bucket|sum|count)\Z")


async def scrape(api: Served) -> str:
    response = await api.http.get("/metrics")
    assert response.status_code == 200
    return response.text


def value(text: str, name: str, **labels: str) -> float:
    """Return the value of a sample, 0 when there is none."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def names(text: str) -> set[str]:
    """Return the names of belljar's metrics in an expression or a text."""
    return {_SUFFIX.sub("", name) for name in re.findall(r"\bbelljar_[a-z_]+", text)}


def families(text: str) -> set[str]:
    """Return the names of belljar's metrics that a server offers, also those that have no sample yet."""
    return {_SUFFIX.sub("", name) for name in re.findall(r"^# TYPE (belljar_\w+)", text, re.MULTILINE)}


def promtool(*arguments: str, stdin: str = "") -> str:
    """Run promtool, and return what it printed. Fails with that when it finds a fault."""
    program = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / ".venv/bin"))
    if program is None:
        pytest.skip("needs promtool: script/bootstrap --dev")
    done = subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, timeout=60, cwd=MONITORING
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_requests_are_counted_by_route_never_by_path(api: Served) -> None:
    before = await scrape(api)
    job = await api.submit()
    await api.http.get(f"/v1/jobs/{job['id']}")
    await api.http.head(f"/v1/jobs/{job['id']}")
    await api.http.get("/v1/jobs/nonsense")
    await api.http.get(f"/v1/jobs/{job['id']}/artifacts/some/file")
    await api.http.get("/no/such/path")
    async with api.caller() as anonymous:
        await anonymous.get("/v1/jobs")
    after = await scrape(api)

    def grown(method: str, route: str, status: str) -> float:
        found = [
            value(text, "belljar_http_requests_total", method=method, route=route, status=status)
            for text in (after, before)
        ]
        return found[0] - found[1]

    assert grown("POST", "/v1/jobs", "2xx") == 1
    assert (grown("GET", "/v1/jobs/{job_id}", "2xx"), grown("GET", "/v1/jobs/{job_id}", "4xx")) == (1, 1)
    assert grown("HEAD", "/v1/jobs/{job_id}", "2xx") == 1
    assert grown("GET", "/v1/jobs/{job_id}/artifacts/{path}", "4xx") == 1
    assert grown("GET", "none", "4xx") == 2  # without a key, and of no route
    assert "nonsense" not in after and "no/such" not in after and job["id"] not in after
    count = value(after, "belljar_http_response_seconds_count", method="POST", route="/v1/jobs")
    assert count - value(before, "belljar_http_response_seconds_count", method="POST", route="/v1/jobs") == 1
    assert value(after, "belljar_jobs_submitted_total") - value(before, "belljar_jobs_submitted_total") == 1
    for code in ("not_found", "not_authenticated"):
        assert value(after, "belljar_api_errors_total", code=code) > value(
            before, "belljar_api_errors_total", code=code
        )


async def test_a_method_of_the_clients_own_is_no_label(api: Served) -> None:
    await api.http.request("BREW", "/v1/jobs")
    text = await scrape(api)
    assert "BREW" not in text
    assert value(text, "belljar_http_requests_total", method="other", route="/v1/jobs", status="4xx") >= 1


async def test_the_oldest_queued_job_is_that_of_any_project(api: Served) -> None:
    assert value(await scrape(api), "belljar_queue_oldest_job_seconds") == 0
    await api.submit()
    async with await api.caller_of("other") as other:
        job = (await other.post("/v1/jobs", json={"code": "print(1)", "language": "python"})).json()
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    async with api.services.database.write() as connection:
        await connection.execute(jobs.update().where(jobs.c.id == job["id"]).values(created_at=long_ago))
        # Ids sort by creation.
        await connection.execute(jobs.update().where(jobs.c.id == job["id"]).values(id="job_" + "0" * 26))
    assert 3600 <= value(await scrape(api), "belljar_queue_oldest_job_seconds") < 3700
    text = await scrape(api)
    assert value(text, "belljar_jobs", status="queued") == 2 and value(text, "belljar_sandboxes", status="running") == 0


async def test_no_error_of_the_disk_keeps_the_rest_from_being_read(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("the file system does not respond")

    monkeypatch.setattr(api.services.disk, "measure", fail)
    assert "belljar_jobs{" in await scrape(api)


async def test_the_format_is_what_prometheus_wants(api: Served) -> None:
    await api.submit()
    await api.begin()
    promtool("check", "metrics", stdin=await scrape(api))


def test_the_alert_rules_are_valid_and_fire_as_their_tests_say() -> None:
    promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")


def test_every_alert_has_a_test() -> None:
    alerts = set(re.findall(r"- alert: (\w+)", (MONITORING / "alerts.yml").read_text()))
    assert alerts == set(re.findall(r"alertname: (\w+)", (MONITORING / "alerts_test.yml").read_text()))


async def test_the_alerts_and_the_dashboard_name_metrics_that_a_server_has(api: Served) -> None:
    offered = families(await scrape(api))
    rules = re.findall(
        r"^        expr:(?: >\n)?(.*?)^        for:", (MONITORING / "alerts.yml").read_text(), re.M | re.S
    )
    dashboard = json.loads((MONITORING / "grafana/belljar.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(rules) >= 10 and len(expressions) >= 25
    for expression in (*rules, *expressions):
        assert names(expression) <= offered or "up{" in expression, expression


async def test_every_metric_is_documented_and_every_documented_one_exists(api: Served) -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    documented = {name.removesuffix("_total") for name in re.findall(r"^\| `(belljar_\w+)`", page, re.MULTILINE)}
    assert documented == families(await scrape(api))


def test_a_dashboard_has_each_panel_once_and_no_two_at_one_place() -> None:
    panels = json.loads((MONITORING / "grafana/belljar.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(places)) == len(places) and max(x for x, _ in places) < 24


def test_no_label_of_the_dashboard_is_a_path_or_a_project() -> None:
    text = (MONITORING / "grafana/belljar.json").read_text() + (MONITORING / "alerts.yml").read_text()
    assert not re.search(r"by \([^)]*\b(project|path|job_id)\b", text)
