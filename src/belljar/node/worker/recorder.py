"""Reports one attempt to the control plane: its output, its artifacts, its start and its end.

How a script ended is noted on this host before anything else is done: from then on the job is ended by that and never
run again, whatever becomes of its log, its artifacts, its machine, the control plane or this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from belljar.link.errors import LeaseLost
from belljar.link.leases import Assignment, StartReport
from belljar.model.errors import BelljarError
from belljar.model.flows import FlowReport
from belljar.model.job import JobError, Timings
from belljar.model.log_stream import LogStream
from belljar.model.outcome import Outcome
from belljar.node.guest.usage_sampler import UsageSampler
from belljar.node.machines.provision.request import Source
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.attempt_record import AttemptRecord
from belljar.node.worker.attempt_trace import trace_attempt
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.flow_reports import FlowReports
from belljar.node.worker.job_network import format_refusals, network_use
from belljar.node.worker.journal import AttemptJournal, journal_path
from belljar.node.worker.output import CappedOutput, LinkedArtifacts
from belljar.node.worker.output_sender import OutputSender
from belljar.node.worker.retry import retry_until_written
from belljar.node.worker.usage_reporter import UsageReporter
from belljar.system.histograms import observe

log = structlog.get_logger()

#: A script that is over sooner is not written down as running first: two writes where one says it all.
_MOMENT_SECONDS = 0.025


@asynccontextmanager
async def recording(
    context: WorkerContext, assignment: Assignment, on_lease_lost: Callable[[], None]
) -> AsyncIterator[Recorder]:
    """Open the recorder of one attempt for the block. Raises LeaseLost, DiskFull, HostError."""
    sender = OutputSender(context.link, assignment.lease, context.retry_times, on_lease_lost)
    await sender.open()
    journal = AttemptJournal(journal_path(context.settings.data_dir, assignment.job), assignment.job)
    recorder = Recorder(context, assignment, sender, journal)
    try:
        yield recorder
    finally:
        recorder.close()
        await sender.close()


class Recorder(AttemptRecord):
    """The observer of one attempt that a worker runs."""

    output: CappedOutput
    artifacts: LinkedArtifacts

    def __init__(
        self, context: WorkerContext, assignment: Assignment, sender: OutputSender, journal: AttemptJournal
    ) -> None:
        super().__init__()
        settings = context.settings
        self._link = context.link
        self._retry_times = context.retry_times
        self._lease = assignment.lease
        self._job = assignment.job
        self._claimed_at = datetime.now(UTC)
        self._claimed = time.monotonic()
        self._sender = sender
        self._journal = journal
        self._usage = UsageReporter(context.link, assignment.lease)
        self._start_report: asyncio.Task[None] | None = None
        self._flows = FlowReports(lambda report: self._link.report_flows(self._lease, report), self._ids())
        self._over = asyncio.Event()
        #: How the job ends, as far as it is known; None until its script has ended or it was refused.
        self.outcome: Outcome | None = None
        #: Whether the control plane knows how the job ended, or has nothing more to learn from this attempt.
        self.recorded = False
        #: Whether this attempt has ended the job.
        self._has_ended_job = False
        self.output = CappedOutput(sender, int(settings.max_output_mb * 1024 * 1024))
        self.artifacts = LinkedArtifacts(context.link, self._lease, settings.paths.artifacts, context.retry_times)

    def on_machine(self, source: Source) -> None:
        super().on_machine(source)
        log.info("machine_ready", **self._ids(), source=source, milliseconds=self._milliseconds())

    def on_started(self) -> None:
        """Report the start beside the run, which does not wait for it."""
        super().on_started()
        assert self.started_at is not None
        log.info("job_started", **self._ids(), milliseconds=self._milliseconds())
        self._start_report = asyncio.create_task(self._report_start(self.started_at))

    async def _report_start(self, started_at: datetime) -> None:
        """Report that the script runs, unless it is over first: its end says that too."""
        backoff = self._retry_times.backoff()
        pause_seconds = _MOMENT_SECONDS
        while not await self._over_within(pause_seconds):
            assert self.machine is not None
            report = StartReport(started_at=started_at, machine=self.machine, timings=self._timings())
            try:
                await self._link.started(self._lease, report)
            except LeaseLost:
                return  # the lease's own clock ends the attempt
            except Exception as error:  # noqa: BLE001 (a hint for people who watch; the end is what counts)
                pause_seconds = backoff.next()
                log.error("start_not_written", **self._ids(), error=str(error), retry_seconds=pause_seconds)
            else:
                return

    async def _over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    def on_flows(self, report: FlowReport) -> None:
        self._flows.offer(report)

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        if dropped_bytes:
            data += f"\n[belljar: {dropped_bytes} more bytes of the console were dropped]\n".encode()
        self._sender.append(LogStream.CONSOLE, data)

    def on_build_notice(self, sentence: str) -> None:
        self._sender.append(LogStream.BUILD, f"[belljar: {sentence}]\n".encode())

    def on_build_output(self, data: bytes) -> None:
        self._sender.append(LogStream.BUILD, data)

    def on_usage(self, sampler: UsageSampler) -> None:
        self._usage.note(sampler)

    # --- the end --------------------------------------------------------------------------------------------------

    def on_script_ended(self, end: AttemptEnd) -> None:
        """The script has ended, and nothing that follows changes how: note it, without what is still to come."""
        outcome = self._outcome(end)
        if self._job.artifacts and outcome.error is None:
            lost = JobError(code="artifacts_incomplete", message="the worker was stopped before it had all artifacts")
            outcome = outcome.model_copy(update={"error": lost})
        if not self._sender.is_idle:
            lost = JobError(code="log_incomplete", message="the worker was stopped before it had sent all output")
            logs = outcome.logs.model_copy(update={"incomplete": True})
            outcome = outcome.model_copy(update={"error": outcome.error or lost, "logs": logs})
        self._set(outcome)
        log.debug("script_ended", **self._ids(), status=outcome.status)

    async def ended(self, end: AttemptEnd) -> None:
        """Report how the script ended, with all that came of it."""
        for sentence in format_refusals(network_use(end.traffic, end.flows), self._job):
            self._sender.append(LogStream.CONSOLE, f"\n[belljar: {sentence}]\n".encode())
        await self._sender.drain(self._retry_times.drain_seconds)
        await self._flows.finish(end.flows)
        await self._usage.finish()
        self._set(self._outcome(end))
        await self.record()

    async def refuse(self, error: BelljarError) -> None:
        """End the job before it had a machine: what it asks for cannot be had."""
        failed = Outcome.failed(JobError(code=error.code, message=error.message))
        self._set(failed.model_copy(update={"timings": self._timings()}))
        await self.record()

    async def record(self) -> None:
        """Report how the job ended until the control plane has it. Calling it again has no effect."""
        outcome = self.outcome
        assert outcome is not None
        if self.recorded:
            return
        await self.flush()
        ids = self._ids()
        try:
            is_written = await self._finish(outcome)
        except Exception:
            log.exception("outcome_not_written", **ids)
            error = JobError(code="internal_error", message="belljar could not write all that came of the job")
            plain = Outcome(
                status=outcome.status, exit_code=outcome.exit_code, error=error, finished_at=outcome.finished_at
            )
            is_written = await self._finish(plain.model_copy(update={"started_at": outcome.started_at}))
        self.recorded, self._has_ended_job = True, is_written
        if not is_written:
            log.warning("outcome_discarded", **ids, status=outcome.status)
            return
        trace_attempt(self._job, self._claimed_at, outcome)
        if outcome.machine is not None:
            for phase, milliseconds in outcome.timings.phases.items():
                observe("belljar_phase_seconds", milliseconds / 1000, phase=phase, source=outcome.machine.source)
        log.info(
            "job_ended", **ids, status=outcome.status, exit_code=outcome.exit_code, milliseconds=outcome.timings.phases
        )

    async def _finish(self, outcome: Outcome) -> bool:
        """Return whether this attempt has ended the job; otherwise its lease was lost before."""
        try:
            await retry_until_written(
                lambda: self._link.finish(self._lease, outcome), "finish", self._retry_times, **self._ids()
            )
        except LeaseLost:
            return False
        return True

    def _set(self, outcome: Outcome) -> None:
        self._over.set()
        self.outcome = outcome
        self._journal.note(outcome)

    def _outcome(self, end: AttemptEnd) -> Outcome:
        fields = self.outcome_fields(
            self._job, end, claimed_at=self._claimed_at, logs=self.output.info(), kept=self.artifacts.kept
        )
        return Outcome(**fields | {"error": fields["error"] or self._log_error()})

    async def flush(self) -> None:
        """Wait until the start and all output are reported, as far as that can be done in time."""
        self._over.set()
        if self._start_report is not None:
            await asyncio.wait({self._start_report})
        await self._sender.drain(self._retry_times.drain_seconds)

    def _log_error(self) -> JobError | None:
        failure = self._sender.failure
        if failure is None:
            return None
        return JobError(code="log_incomplete", message=f"the log is not complete: {failure.message}")

    def _timings(self) -> Timings:
        return self.timings_of(self._job, self._claimed_at)

    def _milliseconds(self) -> float:
        return round((time.monotonic() - self._claimed) * 1000, 3)

    def _ids(self) -> dict[str, object]:
        return {"job": self._job.id, "attempt": self._job.attempt}

    def close(self) -> None:
        """Release everything. An end that this attempt could not report stays noted: the job may come again."""
        self._over.set()
        if self._start_report is not None:
            self._start_report.cancel()
        self._flows.close()
        self._usage.close()
        self.artifacts.close()
        if self.outcome is not None and not self._has_ended_job:
            self._journal.close()
        else:
            self._journal.remove()
