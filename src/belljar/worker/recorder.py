"""Keeps one attempt's record: its log, its artifacts, and the job's changes of state in the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from belljar.blobs.log import LogStream, LogWriter, keep_log, log_path
from belljar.errors import BelljarError, HostError
from belljar.jobs.model import Job, JobError, MachineInfo, Timings
from belljar.jobs.outcome import Outcome
from belljar.machines.protocol import Hypervisor
from belljar.machines.supply import Source
from belljar.worker.attempt import AttemptEnd
from belljar.worker.ending import error_of, signal_name, status_of, usage_of
from belljar.worker.networking import network_use, told
from belljar.worker.output import BlobArtifacts, LoggedOutput
from belljar.worker.rooms import WorkerRooms

log = structlog.get_logger()

T = TypeVar("T")
_RETRY_SECONDS = 2.0
#: A script that is over sooner is not written down as running first: two writes where one says it all.
_MOMENT_SECONDS = 0.025


async def persistently(write: Callable[[], Awaitable[T]]) -> T:
    """Write to the store until it takes it: a full disk must not lose how a job ended."""
    while True:
        try:
            return await write()
        except HostError as error:
            log.error("store_refused", error=error.message)
            await asyncio.sleep(_RETRY_SECONDS)


class Recorder:
    """The audience of one attempt. `close` when the attempt is over, however it was."""

    def __init__(self, rooms: WorkerRooms, worker_id: str, job: Job) -> None:
        settings = rooms.settings
        self._rooms = rooms
        self._worker_id = worker_id
        self._job = job
        self._claimed_at = datetime.now(UTC)
        self._started_at: datetime | None = None
        self._before: dict[str, float] = {}
        self._log = LogWriter(log_path(settings.data_dir, job.id), lambda: rooms.changes.notify_log(job.id))
        self._written: asyncio.Task[bool] | None = None
        self._over = asyncio.Event()
        self.machine: MachineInfo | None = None
        #: What runs its machine; set before the attempt begins.
        self.hypervisor: Hypervisor | None = None
        self.output = LoggedOutput(self._log, int(settings.max_output_mb * 1024 * 1024))
        self.artifacts = BlobArtifacts(rooms.blobs, job.id, settings.data_dir / "run" / "artifacts")

    def took(self, source: Source) -> None:
        """There is a machine."""
        assert self.hypervisor is not None
        self.machine = MachineInfo(
            source=source, hypervisor=self.hypervisor.name, accelerator=self.hypervisor.accelerator
        )

    def started(self) -> None:
        """The entrypoint runs: written beside the run, which does not wait for it."""
        self._started_at = datetime.now(UTC)
        self._written = asyncio.create_task(self._write_running(self._started_at))

    async def _write_running(self, started_at: datetime) -> bool:
        try:
            async with asyncio.timeout(_MOMENT_SECONDS):
                await self._over.wait()
                return False
        except TimeoutError:
            pass
        machine = self.machine
        assert machine is not None
        written = await persistently(
            lambda: self._rooms.claims.running(
                self._worker_id, self._job, started_at=started_at, machine=machine, timings=self._timings()
            )
        )
        self._rooms.changes.notify(self._job.id)
        return written

    def console(self, data: bytes, dropped_bytes: int) -> None:
        if dropped_bytes:
            data += f"\n[belljar: {dropped_bytes} more bytes of the console were dropped]\n".encode()
        self._log.append(LogStream.CONSOLE, data)

    def build_notice(self, sentence: str) -> None:
        self._log.append(LogStream.BUILD, f"[belljar: {sentence.removeprefix('belljar: ')}]\n".encode())

    def build_words(self, data: bytes) -> None:
        self._log.append(LogStream.BUILD, data)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Keep how long the block took as a phase before those of the machine."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._before[phase] = round((time.monotonic() - started) * 1000, 3)

    async def refuse(self, error: BelljarError) -> None:
        """End the job before it had a machine: what it asks for cannot be had."""
        failed = Outcome.failed(JobError(code=error.code, message=error.message))
        await self.finish(failed.model_copy(update={"timings": self._timings()}))

    async def ended(self, end: AttemptEnd) -> None:
        """Write down how the script ended."""
        exited, use = end.exited, network_use(end.traffic)
        for sentence in told(use, self._job):
            self._log.append(LogStream.CONSOLE, f"\n[{sentence}]\n".encode())
        await self.finish(
            Outcome(
                status=status_of(end),
                exit_code=exited.exit_code if exited else None,
                signal=signal_name(exited.signal) if exited else None,
                error=error_of(end, self._job) or self._log_error(),
                timings=self._timings(end),
                usage=usage_of(end),
                network=use,
                started_at=self._started_at,
                logs=self.output.info(),
                kept_artifacts=tuple(self.artifacts.kept),
                finished_at=datetime.now(UTC),
                machine=self.machine,
            )
        )

    async def finish(self, outcome: Outcome) -> None:
        """End the job: first its log, so that who sees the end finds the whole log."""
        self._over.set()
        await self.flush()
        await keep_log(self._rooms.settings.data_dir, self._rooms.blobs, self._job.id)
        claims = self._rooms.claims
        if not await persistently(lambda: claims.finish(self._worker_id, self._job, outcome)):
            log.warning("outcome_discarded", job=self._job.id, attempt=self._job.attempt, status=outcome.status)

    async def flush(self) -> None:
        """Everything said so far is written."""
        if self._written is not None:
            await self._written
        self.close()

    def _log_error(self) -> JobError | None:
        if self._log.failure is None:
            return None
        message = f"the log is not complete: {self._log.failure.strerror}; free some space in the data folder"
        return JobError(code="log_incomplete", message=message)

    def _timings(self, end: AttemptEnd | None = None) -> Timings:
        def milliseconds(start: datetime, stop: datetime) -> float:
            return round((stop - start).total_seconds() * 1000, 3)

        started = self._started_at
        return Timings(
            queue_ms=milliseconds(self._job.created_at, self._claimed_at),
            machine_ms=milliseconds(self._claimed_at, started) if started else None,
            run_ms=end.phases.get("run") if end and started else None,
            phases=self._before | (end.phases if end else {}),
        )

    def close(self) -> None:
        self._log.close()
        self.artifacts.close()
