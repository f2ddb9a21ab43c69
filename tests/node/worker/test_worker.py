"""The worker over real parts: jobs from the queue to their end, and what it takes and gives back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from belljar.control.store.usage_series import SqlUsageSeries
from belljar.link.leases import ClaimRequest
from belljar.model.errors import HostError, MachineError
from belljar.model.states import Status
from belljar.node.guest import usage_sampler
from belljar.node.worker import usage_reporter
from belljar.system import tracing
from support.otlp_receiver import collector
from support.worker_harness import WorkerHarness


async def test_a_job_runs_to_its_end_and_nothing_is_left(harness: WorkerHarness) -> None:
    job = await harness.submit("cat; echo oh >&2; echo made > out.txt; exit 3", stdin=b"input", artifacts=("*.txt",))
    async with harness.working() as worker:
        found = await harness.ended(job)
    assert (found.status, found.exit_code, found.attempt, found.error) == (Status.FAILED, 3, 1, None)
    assert (found.logs.stdout_bytes, found.logs.stderr_bytes) == (5, 3)
    assert [each.path for each in found.kept_artifacts] == ["out.txt"]
    assert found.lost_attempts == ()
    assert worker.capacity.jobs == 0 and harness.hypervisor.alive == 0
    assert harness.leftovers() == []


async def test_the_usage_of_a_jobs_machine_is_kept_while_it_runs_and_when_it_has_ended(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_sampler, "FIRST_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(usage_reporter, "_FIRST_SECONDS", 0.1)
    usage, go = SqlUsageSeries(harness.database), harness.settings.data_dir / "go"
    job = await harness.submit(f"while [ ! -e {go} ]; do sleep 0.05; done; sleep 0.3")
    async with harness.working():
        async with asyncio.timeout(30):
            while (early := await usage.get(job.id)) is None:
                await asyncio.sleep(0.05)
        go.touch()
        found = await harness.ended(job)
    assert found.status is Status.SUCCEEDED
    stored = await usage.get(job.id)
    assert stored is not None and stored.number == 1
    assert len(stored.series.seconds) > len(early.series.seconds) > 0


async def test_an_attempt_is_traced_below_the_request_that_submitted_its_job(harness: WorkerHarness) -> None:
    with collector() as received, tracing.tracing(received.url, 1.0):
        with tracing.span("request") as request:
            job = await harness.submit("exit 3", traceparent=request.traceparent)
        async with harness.working():
            found = await harness.ended(job)
    assert found.status is Status.FAILED
    attempt = received.named("attempt")
    assert attempt.parent_id == received.named("request").span_id
    attributes = attempt.attributes
    assert (attributes["belljar.job"], attributes["belljar.attempt"]) == (job.id, 1)
    assert (attributes["belljar.status"], attributes["belljar.exit_code"]) == ("failed", 3)
    phases = received.below(attempt)
    assert {"boot", "start", "script"} <= phases.keys()
    assert found.timings is not None
    milliseconds = (phases["script"].end - phases["script"].begin) / 1e6
    assert milliseconds == pytest.approx(found.timings.phases["run"], abs=0.01)
    assert phases["boot"].end <= phases["start"].end <= phases["script"].begin
    assert attempt.begin <= phases["boot"].begin and phases["script"].end <= attempt.end


async def test_a_lost_attempt_is_a_failed_span(harness: WorkerHarness) -> None:
    harness.faults.refuse("provisioner.machine", lambda: MachineError("no machine"))
    with collector() as received, tracing.tracing(received.url, 1.0):
        with tracing.span("request") as request:
            job = await harness.submit("true", traceparent=request.traceparent, max_attempts=1)
        async with harness.working():
            found = await harness.ended(job)
    assert found.status is Status.LOST
    span = received.named("attempt")
    assert span.is_error and span.attributes == {"belljar.job": job.id, "belljar.attempt": 1}


async def test_usage_that_cannot_be_kept_costs_the_job_nothing(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_sampler, "FIRST_INTERVAL_SECONDS", 0.1)

    async def refuse(*_: Any) -> bool:
        raise HostError("the disk is full")

    monkeypatch.setattr(SqlUsageSeries, "put_of_job", refuse)
    job = await harness.submit("sleep 0.3")
    async with harness.working():
        found = await harness.ended(job)
    assert (found.status, found.attempt) == (Status.SUCCEEDED, 1)


async def test_a_worker_that_is_stopped_waits_until_a_claim_is_undone(harness: WorkerHarness) -> None:
    """Also when the capacity has changed just before, and the claim was being cancelled for that."""
    undone = []

    async def claim(*_: Any) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.1)
            undone.append(True)

    worker = harness.worker()
    link: Any = worker._context.link
    link.claim = claim
    claiming = asyncio.create_task(worker._claim(ClaimRequest(vcpus=1, memory_mb=1)))
    await asyncio.sleep(0.01)
    worker._changed.set()
    await asyncio.sleep(0.01)
    claiming.cancel()
    await asyncio.wait({claiming})
    assert claiming.cancelled() and undone == [True]


async def test_a_claim_that_is_about_to_succeed_is_not_undone_when_the_capacity_changes(harness: WorkerHarness) -> None:
    async def claim(*_: Any) -> str:
        for _turn in range(5):
            await asyncio.sleep(0)
        return "an assignment"

    worker = harness.worker()
    link: Any = worker._context.link
    link.claim = claim
    worker._changed.set()
    assert await worker._claim(ClaimRequest(vcpus=1, memory_mb=1)) == "an assignment"  # type: ignore[comparison-overlap]
