"""Keeps one attempt's record: its log, its artifacts, and the job's changes of state in the store.

How a script ended is known from the moment that it has ended, and noted on this host before anything else is done: from
then on the job is ended by that and never run again, whatever becomes of its log, its artifacts, its machine, the store
or this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from belljar.control.logs.log import LogStream, LogWriter
from belljar.model.errors import BelljarError
from belljar.model.job import Job, JobError, LogInfo, Timings
from belljar.model.outcome import Outcome
from belljar.node.machines.provision.request import Source
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.attempt_record import AttemptRecord
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.job_logs import JobLogs
from belljar.node.worker.job_network import format_refusals, network_use
from belljar.node.worker.journal import AttemptJournal, journal_path
from belljar.node.worker.output import BlobArtifacts, LoggedOutput
from belljar.node.worker.retry import retry_until_written
from belljar.system.counters import increment

log = structlog.get_logger()

#: A script that is over sooner is not written down as running first: two writes where one says it all.
_MOMENT_SECONDS = 0.025


@asynccontextmanager
async def recording(context: WorkerContext, logs: JobLogs, worker_id: str, job: Job) -> AsyncIterator[Recorder]:
    """The recorder of one attempt, closed with the block. Raises DiskFull, HostError."""
    async with logs.opened(job) as writer:
        journal = AttemptJournal(journal_path(context.settings.data_dir, job), job)
        recorder = Recorder(context, logs, worker_id, job, writer, journal)
        try:
            yield recorder
        finally:
            recorder.close()


class Recorder(AttemptRecord):
    """The observer of one attempt that a worker runs."""

    output: LoggedOutput
    artifacts: BlobArtifacts

    def __init__(
        self,
        context: WorkerContext,
        logs: JobLogs,
        worker_id: str,
        job: Job,
        writer: LogWriter,
        journal: AttemptJournal,
    ) -> None:
        super().__init__()
        settings = context.settings
        self._context = context
        self._logs = logs
        self._worker_id = worker_id
        self._job = job
        self._claimed_at = datetime.now(UTC)
        self._claimed = time.monotonic()
        self._log = writer
        self._journal = journal
        self._written: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        #: How the job ends, as far as it is known; None until its script has ended or it was refused.
        self.outcome: Outcome | None = None
        #: Whether the store knows how the job ended, or has nothing more to learn from this attempt.
        self.recorded = False
        self.output = LoggedOutput(self._log, int(settings.max_output_mb * 1024 * 1024))
        self.artifacts = BlobArtifacts(context.blobs, job, settings.paths.artifacts, context.retry_times)

    def on_machine(self, source: Source) -> None:
        super().on_machine(source)
        log.info("machine_ready", **self._ids(), source=source, milliseconds=self._milliseconds())

    def on_started(self) -> None:
        """Have the start written beside the run, which does not wait for it."""
        super().on_started()
        assert self.started_at is not None
        log.info("job_started", **self._ids(), milliseconds=self._milliseconds())
        self._written = asyncio.create_task(self._write_running(self.started_at))

    async def _write_running(self, started_at: datetime) -> None:
        """Tell the store that the job runs, unless it is over first: its end says that too."""
        backoff = self._context.retry_times.backoff()
        pause_seconds = _MOMENT_SECONDS
        while not await self._over_within(pause_seconds):
            assert self.machine is not None
            try:
                await self._context.claims.running(
                    self._worker_id, self._job, started_at=started_at, machine=self.machine, timings=self._timings()
                )
            except Exception as error:  # noqa: BLE001 (a hint for who watches; the end is what counts)
                pause_seconds = backoff.next()
                log.error("start_not_written", **self._ids(), error=str(error), retry_seconds=pause_seconds)
            else:
                self._context.changes.notify(self._job.id)
                return

    async def _over_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return False
        return True

    def on_console(self, data: bytes, dropped_bytes: int) -> None:
        if dropped_bytes:
            data += f"\n[belljar: {dropped_bytes} more bytes of the console were dropped]\n".encode()
        self._log.append(LogStream.CONSOLE, data)

    def on_build_notice(self, sentence: str) -> None:
        self._log.append(LogStream.BUILD, f"[belljar: {sentence.removeprefix('belljar: ')}]\n".encode())

    def on_build_output(self, data: bytes) -> None:
        self._log.append(LogStream.BUILD, data)

    # --- the end --------------------------------------------------------------------------------------------------

    def on_script_ended(self, end: AttemptEnd) -> None:
        """The script has ended, and nothing that follows changes how: note it, without what is still to come."""
        outcome = self._outcome(end)
        if self._job.artifacts and outcome.error is None:
            lost = JobError(code="artifacts_incomplete", message="the worker was stopped before it had all artifacts")
            outcome = outcome.model_copy(update={"error": lost})
        self._set(outcome)
        log.debug("script_ended", **self._ids(), status=outcome.status)

    async def ended(self, end: AttemptEnd) -> None:
        """Write down how the script ended, with all that came of it."""
        for sentence in format_refusals(network_use(end.traffic), self._job):
            self._log.append(LogStream.CONSOLE, f"\n[{sentence}]\n".encode())
        self._log.flush()
        self._set(self._outcome(end))
        await self.record()

    async def refuse(self, error: BelljarError) -> None:
        """End the job before it had a machine: what it asks for cannot be had."""
        failed = Outcome.failed(JobError(code=error.code, message=error.message))
        self._set(failed.model_copy(update={"timings": self._timings()}))
        await self.record()

    async def record(self) -> None:
        """Tell the store how the job ended until it takes it. Once is enough; again does no harm."""
        outcome = self.outcome
        assert outcome is not None
        if self.recorded:
            return
        await self.flush()
        # First the log, so that who sees the end finds all of it; where that fails it is read from this host.
        await self._logs.keep(self._job.id, writers=1)
        ids = self._ids()
        try:
            written = await self._finish(outcome)
        except Exception:
            log.exception("outcome_not_written", **ids)
            error = JobError(code="internal_error", message="belljar could not write all that came of the job")
            plain = Outcome(
                status=outcome.status, exit_code=outcome.exit_code, error=error, finished_at=outcome.finished_at
            )
            written = await self._finish(plain.model_copy(update={"started_at": outcome.started_at}))
        self.recorded = True
        if not written:
            log.warning("outcome_discarded", **ids, status=outcome.status)
            return
        increment("belljar_attempts", outcome=outcome.status)
        log.info(
            "job_ended", **ids, status=outcome.status, exit_code=outcome.exit_code, milliseconds=outcome.timings.phases
        )

    async def _finish(self, outcome: Outcome) -> bool:
        finish = self._context.claims.finish
        return await retry_until_written(
            lambda: finish(self._worker_id, self._job, outcome), "finish", self._context.retry_times, **self._ids()
        )

    def _set(self, outcome: Outcome) -> None:
        self._over.set()
        self.outcome = outcome
        self._journal.note(outcome)

    def _outcome(self, end: AttemptEnd) -> Outcome:
        outcome = self.outcome_of(
            self._job, end, claimed_at=self._claimed_at, logs=self._log_info(), kept=self.artifacts.kept
        )
        error = outcome.error or self._log_error()
        return outcome.model_copy(update={"error": error}) if error is not outcome.error else outcome

    async def flush(self) -> None:
        """Everything said so far is written. Nothing can be said after it."""
        self._over.set()
        if self._written is not None:
            await asyncio.wait({self._written})
        self._log.close()

    def _log_info(self) -> LogInfo:
        return self.output.info().model_copy(update={"incomplete": self._log.failure is not None})

    def _log_error(self) -> JobError | None:
        if self._log.failure is None:
            return None
        message = f"the log is not complete: {self._log.failure.strerror}; free some space in the data folder"
        return JobError(code="log_incomplete", message=message)

    def _timings(self) -> Timings:
        return self.timings_of(self._job, self._claimed_at)

    def _milliseconds(self) -> float:
        return round((time.monotonic() - self._claimed) * 1000, 3)

    def _ids(self) -> dict[str, object]:
        return {"job": self._job.id, "attempt": self._job.attempt}

    def close(self) -> None:
        """Let go of everything. What the store was not told stays noted for the next start of this worker."""
        self._over.set()
        if self._written is not None:
            self._written.cancel()
        self._log.close()
        self.artifacts.close()
        if self.outcome is not None and not self.recorded:
            self._journal.close()
        else:
            self._journal.remove()
