"""Reports of flows: kept under the lease of their machine, bounded, removed with their job or sandbox."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from belljar.control.flows.service import FlowService
from belljar.control.store.retention import SqlRetention
from belljar.control.store.sandbox_tables import sandboxes
from belljar.link.errors import LeaseLost
from belljar.model.errors import TooLarge
from belljar.model.flows import MAX_FLOWS, Flow, FlowAlert, FlowReport, FlowTotals, LostFlows, joined
from belljar.model.outcome import Outcome
from belljar.model.sandbox import EndReason
from belljar.model.states import Status
from support.control_plane import ControlPlane, opened_control_plane
from support.link_calls import NODE, claim_next, start
from support.sandboxes import claim_sandbox, end_by

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def report(count: int = 1, **fields: object) -> FlowReport:
    flow = Flow(protocol="tcp", address="203.0.113.7", port=443, verdict="allowed", first_seen=NOW, last_seen=NOW)
    flows = tuple(flow.model_copy(update={"guest_port": number + 1}) for number in range(count))
    return FlowReport(source="ebpf", updated_at=NOW, flows=flows, totals=FlowTotals(flows=count), **fields)  # type: ignore[arg-type]


def service(control: ControlPlane) -> FlowService:
    return FlowService.over(control.database)


async def test_a_report_replaces_the_one_before_and_is_gone_with_its_job(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path) as control:
        job = await control.submit()
        assert await service(control).get(job.id) == FlowReport()
        lease = (await claim_next(control.queue.link)).lease
        await start(control.queue.link, lease)
        await control.queue.link.report_flows(lease, report())
        await control.queue.link.report_flows(lease, report(1500, is_final=True))
        assert await service(control).get(job.id) == report(1500, is_final=True)
        await control.queue.link.finish(lease, Outcome(status=Status.SUCCEEDED, started_at=NOW, finished_at=NOW))
        with pytest.raises(LeaseLost):
            await control.queue.link.report_flows(lease, report())
        removed = await SqlRetention(control.database).remove_ended(Status.SUCCEEDED, NOW + timedelta(days=1), 10)
        assert removed.job_ids == [job.id]
        assert await service(control).get(job.id) == FlowReport()


async def test_another_lease_writes_nothing(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path) as control:
        job = await control.submit()
        lease = (await claim_next(control.queue.link)).lease
        await start(control.queue.link, lease)
        flows = service(control)
        others = (
            replace(lease, attempt=lease.attempt + 1),
            replace(lease, node=replace(NODE, name="another")),
            replace(lease, node=replace(NODE, incarnation="earlier")),
        )
        for other in others:
            with pytest.raises(LeaseLost):
                await flows.keep_of_job(other, report())
        assert await flows.get(job.id) == FlowReport()


async def test_a_report_has_a_bound(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path) as control:
        await control.submit()
        lease = (await claim_next(control.queue.link)).lease
        with pytest.raises(TooLarge, match=f"at most {MAX_FLOWS} flows"):
            await control.queue.link.report_flows(lease, report(MAX_FLOWS + 1))


async def test_the_flows_of_a_sandbox_are_kept_under_its_lease(tmp_path: Path) -> None:
    async with opened_control_plane(tmp_path) as control:
        sandbox = await control.create_sandbox()
        lease = (await claim_sandbox(control.sandboxes.link, NODE)).lease
        await control.sandboxes.link.report_sandbox_flows(lease, report())
        assert await service(control).get(sandbox.id) == report()
        with pytest.raises(LeaseLost):
            await control.sandboxes.link.report_sandbox_flows(replace(lease, fence=lease.fence + 1), report())
        await control.sandboxes.link.sandbox_ended(lease, end_by(EndReason.DELETED))
        with pytest.raises(LeaseLost):
            await control.sandboxes.link.report_sandbox_flows(lease, report())
        assert await control.sandboxes.store.remove_ended(0, 10) == 1
        assert await service(control).get(sandbox.id) == FlowReport()


async def test_a_pause_hides_nothing_that_a_sandbox_talked_to(tmp_path: Path) -> None:
    """Each machine of a sandbox has a lease of its own."""
    alert = FlowAlert(rule="bytes_out", message="sent 5 MB", at=NOW)
    async with opened_control_plane(tmp_path) as control:
        sandbox = await control.create_sandbox()
        lease = (await claim_sandbox(control.sandboxes.link, NODE)).lease
        flows = service(control)
        for fence in range(lease.fence, lease.fence + 3):
            resumed = sandboxes.update().where(sandboxes.c.id == sandbox.id).values(fence=fence)
            await control.database.writing(lambda connection, query=resumed: connection.execute(query))
            for count in (1, 2):
                await flows.keep_of_sandbox(replace(lease, fence=fence), report(count, alerts=(alert,)))
        found = await flows.get(sandbox.id)
        assert (len(found.flows), found.totals.flows, found.alerts) == (6, 6, (alert,) * 3)


def test_joined_reports_have_a_bound_and_all_sums() -> None:
    many = report(MAX_FLOWS, lost=LostFlows(names=2))
    both = joined([many, many])
    assert (len(both.flows), both.totals.flows, both.left_out.flows) == (MAX_FLOWS, 2 * MAX_FLOWS, MAX_FLOWS)
    assert both.lost.names == 4 and joined([]) == FlowReport() and joined([many]) is many
