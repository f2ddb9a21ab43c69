"""The flows of jobs and sandboxes over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

from belljar.link.leases import LeaseKey, NodeIdentity
from belljar.model.flows import Flow, FlowAlert, FlowReport, FlowTotals
from support.served import Served, problem

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>"


def flow(**fields: object) -> Flow:
    standard = {"protocol": "tcp", "address": "203.0.113.7", "port": 443, "verdict": "allowed", "rule": "open"}
    return Flow(**{**standard, "first_seen": NOW, "last_seen": NOW, **fields})  # type: ignore[arg-type]


REPORT = FlowReport(
    source="ebpf",
    updated_at=NOW,
    totals=FlowTotals(flows=3, bytes_out=30),
    flows=(
        flow(bytes_out=20, tls_name="a.example.org", dns_name="b.example.org"),
        flow(bytes_out=10, port=80, http_host="c.example.org"),
        flow(verdict="refused", rule="egress", protocol="udp", port=53),
    ),
    alerts=(FlowAlert(rule="bytes_out", message=HOSTILE, at=NOW),),
)


async def test_a_jobs_flows_are_shown_filtered_and_limited(api: Served) -> None:
    job = await api.submit()
    url = f"/v1/jobs/{job['id']}/flows"
    empty = (await api.http.get(url)).json()
    assert (empty["source"], empty["flows"], empty["updated_at"]) == ("none", [], None)
    claimed = await api.begin()
    lease = LeaseKey(claimed.id, claimed.attempt, NodeIdentity("w1", ""))
    await api.services.flows.keep_of_job(lease, REPORT)
    shown = (await api.http.get(url)).json()
    assert [(each["name"], each["name_source"]) for each in shown["flows"]] == [
        ("b.example.org", "dns"),
        ("c.example.org", "http"),
        (None, None),
    ]
    assert shown["alerts"][0]["message"] == HOSTILE
    assert shown["totals"]["bytes_out"] == 30
    refused = (await api.http.get(url, params={"verdict": "refused"})).json()["flows"]
    assert [(each["rule"], each["first_seen"]) for each in refused] == [("egress", "2026-01-02T03:04:05Z")]
    assert len((await api.http.get(url, params={"limit": 1})).json()["flows"]) == 1
    problem(await api.http.get(url, params={"verdict": "maybe"}), 422, "invalid_option")


async def test_another_project_sees_no_flows(api: Served) -> None:
    job = await api.submit()
    async with await api.caller_of("other") as other:
        problem(await other.get(f"/v1/jobs/{job['id']}/flows"), 404, "not_found")
        problem(await other.get("/v1/sandboxes/sb_x/flows"), 404, "not_found")


async def test_a_sandbox_without_a_network_has_no_flows(api: Served) -> None:
    async with await api.caller_of("tenant") as http:
        created = (await http.post("/v1/sandboxes?wait=0", json={})).json()
        assert (await http.get(f"/v1/sandboxes/{created['id']}/flows")).json()["source"] == "none"
