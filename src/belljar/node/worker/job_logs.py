"""The logs of jobs on this node: begun where another attempt left off, brought to the blob store, never overwritten.

An attempt that follows a lost one goes on in the same log. A lost attempt therefore leaves its log in the blob store,
where the next one fetches it, on whatever node that is. What could not be brought there stays here, is read from here,
and is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from belljar.control.blobs.store import Blobs
from belljar.control.jobs.changes import Changes
from belljar.control.logs.log import LogStream, LogWriter, log_blob, log_path
from belljar.control.store.claims import SqlClaims
from belljar.model.errors import HostError, NotFound, host_error, without_paths
from belljar.model.job import Job
from belljar.model.states import Status
from belljar.node.worker.retry import RetryTimes
from belljar.system.background import report_failure

log = structlog.get_logger()

#: How many logs' jobs are looked up at once.
_BATCH = 200


class JobLogs:
    """The log files in a worker's data folder. A file is written by one attempt, or brought away, never both."""

    def __init__(self, data_dir: Path, blobs: Blobs, retry_times: RetryTimes, changes: Changes | None = None) -> None:
        self._data_dir = data_dir
        self._blobs = blobs
        self._retry_times = retry_times
        self._changes = changes or Changes()
        self._open: Counter[str] = Counter()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def opened(self, job: Job) -> AsyncIterator[LogWriter]:
        """The log for this attempt to write to, behind what earlier attempts said. Raises HostError."""
        async with self._lock(job.id):
            if job.attempt > 1:
                await self._fetch(job.id)
            writer = LogWriter(
                log_path(self._data_dir, job.id), lambda: self._changes.notify_log(job.id), attempt=job.attempt
            )
            self._open[job.id] += 1
        try:
            with writer:
                yield writer
        finally:
            self._open[job.id] -= 1
            if not self._open[job.id]:
                del self._open[job.id]

    async def keep(self, job_id: str, *, writers: int = 0, seconds: float | None = None) -> None:
        """Bring the log to the blob store; when that fails it stays here. Never raises.

        `writers` is how many of those who have it open are the caller's, and write no more; with others it stays too.
        """
        async with self._lock(job_id):
            path = log_path(self._data_dir, job_id)
            if self._open[job_id] <= writers and path.exists():
                await self._bring(job_id, path, seconds or self._retry_times.upload_seconds)

    def note_lost(self, job: Job) -> None:
        """Say in the job's log that its last attempt was lost; what it had said stays there.

        Tenants read it: the job itself tells its operator of which paths the message speaks.
        """
        lost = job.lost_attempts[-1]
        text = f"\n[belljar: attempt {lost.attempt} was lost: {without_paths(lost.message)}]\n"
        try:
            with LogWriter(log_path(self._data_dir, job.id), attempt=lost.attempt) as writer:
                writer.append(LogStream.CONSOLE, text.encode())
        except HostError as error:
            log.error("job_log_incomplete", job=job.id, error=error.message)

    async def sweep(self, claims: SqlClaims) -> None:
        """Bring away what stays here of jobs that nobody runs here. Raises HostError."""
        for batch in _batches(await asyncio.to_thread(self._idle)):
            jobs = await claims.statuses(batch)
            for job_id in batch:
                status, _ = jobs.get(job_id, (None, None))
                if status is None:
                    log_path(self._data_dir, job_id).unlink(missing_ok=True)  # deleted with its job
                elif status.terminal or status is Status.QUEUED:
                    await self._try_merge(job_id)

    def _idle(self) -> list[str]:
        folder = log_path(self._data_dir, "x").parent
        with contextlib.suppress(FileNotFoundError):
            names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".log")
            return [name for name in names if name not in self._open]
        return []

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._locks.setdefault(job_id, asyncio.Lock())

    async def _fetch(self, job_id: str) -> None:
        """What earlier attempts on other nodes said, where no file is here that goes on from it."""
        path = log_path(self._data_dir, job_id)
        if path.exists():
            return
        part = path.with_suffix(".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with part.open("wb") as file:
                async for chunk in self._blobs.stream(log_blob(job_id)):
                    file.write(chunk)
            part.rename(path)
        except NotFound:
            return
        except OSError as error:
            raise host_error(error, "fetch the job's log") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    @property
    def _slow_seconds(self) -> float:
        """For what nobody waits for."""
        return 10 * self._retry_times.upload_seconds

    async def _bring(self, job_id: str, path: Path, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._blobs.put_file(log_blob(job_id), path)
            path.unlink(missing_ok=True)
        except Exception as error:  # noqa: BLE001 (whatever becomes of its log, the job ends)
            report_failure("keep_log", error, job=job_id)
            return False
        return True

    async def _try_merge(self, job_id: str) -> None:
        try:
            await self._merge(job_id)
        except (HostError, NotFound) as error:  # the others are brought away all the same
            report_failure("keep_log", error, job=job_id)

    async def _merge(self, job_id: str) -> None:
        """Bring the log away with what is kept of it already: attempts on other nodes may have left theirs there."""
        async with self._lock(job_id):
            path = log_path(self._data_dir, job_id)
            if self._open[job_id] or not path.exists():
                return
            part = path.with_suffix(".part")
            try:
                common, size, kept_size = await self._compare(job_id, path)
                if common == size and kept_size:
                    path.unlink()  # all of it is kept
                elif common == kept_size:
                    await self._bring(job_id, path, self._slow_seconds)
                else:
                    await self._append_kept(job_id, path, part)
                    if await self._bring(job_id, part, self._slow_seconds):
                        path.unlink()
            except OSError as error:
                raise host_error(error, "bring a job's log away") from error
            finally:
                with contextlib.suppress(OSError):
                    part.unlink(missing_ok=True)

    async def _compare(self, job_id: str, path: Path) -> tuple[int, int, int]:
        """How many bytes the file and the kept log have in common from their beginnings on, and their lengths.

        A chunk that differs anywhere counts for nothing. What is not kept has no length.
        """
        size, kept_size, common = path.stat().st_size, await self._blobs.size(log_blob(job_id)) or 0, 0
        if not kept_size:
            return 0, size, 0
        with path.open("rb") as file:
            async for chunk in self._blobs.stream(log_blob(job_id)):
                mine = file.read(len(chunk))
                if mine != chunk[: len(mine)]:
                    break
                common += len(mine)
        return common, size, kept_size

    async def _append_kept(self, job_id: str, path: Path, part: Path) -> None:
        with part.open("wb") as out:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    out.write(chunk)
            async for chunk in self._blobs.stream(log_blob(job_id)):
                out.write(chunk)


def _batches(names: list[str]) -> list[list[str]]:
    return [names[at : at + _BATCH] for at in range(0, len(names), _BATCH)]
