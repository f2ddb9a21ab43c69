"""Pages that only show: images, nodes, usage, the audit log."""

from __future__ import annotations

from datetime import UTC, datetime

from belljar.control.store.nodes import Node
from belljar.control.store.schema import audit
from belljar.link.nodes import NodeReport
from support.browser import Browser
from support.served import Served


async def test_images_show_their_languages_and_packages(owner: Browser) -> None:
    page = await owner.get("/images")
    assert page.status_code == 200 and "/images/python" in page.text
    assert "sha256:" in (await owner.get("/images/python")).text
    assert (await owner.get("/images/python?q=%3Cscript%3Ealert(1)")).text.count("<script>alert") == 0
    assert (await owner.get("/images/..%2Fkeys")).status_code == 404


async def test_nodes_are_for_operators_and_what_a_node_reports_is_text(
    api: Served, owner: Browser, operator: Browser
) -> None:
    assert (await owner.get("/nodes")).status_code == 403
    assert "No node has reported" in (await operator.get("/nodes")).text
    report = NodeReport(
        hostname="<script>alert(1)</script>\u202e",
        version="1",
        started_at=datetime.now(UTC),
        vcpus=4,
        memory_mb=8192,
        largest_memory_mb=8000,
        vcpus_free=1,
        memory_free_mb=2048,
        running_jobs=3,
    )
    await api.services.nodes.heartbeat(Node.of_report("w1", report))
    page = await operator.get("/nodes")
    assert "3 of 4" in page.text and "6.0 GiB" in page.text
    assert "<script>alert" not in page.text and "\u202e" not in page.text


async def test_usage_shows_quotas_and_days(api: Served, owner: Browser) -> None:
    assert "Nothing was used" in (await owner.get("/usage")).text
    async with await api.caller_of("tenant") as caller:
        assert (await caller.post("/v1/jobs", json={"code": "1", "language": "python"})).status_code == 202
    await api.http.put("/v1/projects/tenant/quotas", json={"max_queued_jobs": 4})
    page = await owner.get("/usage?days=7")
    assert "25 %" in page.text and "<svg" in page.text and "style=" not in page.text


async def test_the_audit_log_is_filtered_and_a_changed_row_is_found(
    api: Served, owner: Browser, operator: Browser
) -> None:
    await api.services.projects.create("other")
    await api.http.put("/v1/projects/tenant/quotas", json={"max_queued_jobs": 4})
    page = await owner.get("/audit?action=session.start")
    assert page.text.count("<code>session.start</code>") == 1 and "set_quotas" not in page.text.split("<tbody>")[1]
    assert "intact" in (await operator.get("/audit")).text
    assert (await owner.get("/audit?since=soon")).status_code == 422
    assert "No row matches" in (await owner.get("/audit?actor=%3Cimg%20src=x%3E")).text
    await api.services.database.writing(
        lambda connection: connection.execute(audit.update().where(audit.c.seq == 2).values(object="<i>edited"))
    )
    page = await operator.get("/audit")
    assert "row 2 was edited" in page.text and "<i>edited" not in page.text
