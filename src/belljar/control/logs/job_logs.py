"""The logs of jobs while they run: continued by each attempt, uploaded to the blob store, never overwritten.

An attempt that follows a lost one continues the same log. The log of a lost attempt is therefore uploaded too: the next
attempt downloads it, whichever process of the control plane serves it. A log that could not be uploaded stays in the
data folder, is read from there, and is tried again when the job has ended: before, another process may write it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import structlog

from belljar.control.blobs.store import Blobs
from belljar.control.jobs.changes import Changes
from belljar.control.logs.log import LogWriter, log_blob, log_path
from belljar.control.logs.merge import merge_logs
from belljar.control.store.claims import SqlClaims
from belljar.model.errors import HostError, NotFound, host_error, without_paths
from belljar.model.job import Job
from belljar.model.log_stream import LogStream
from belljar.system.background import report_failure
from belljar.system.file_locks import is_current, try_flock

log = structlog.get_logger()

#: How many logs' jobs are looked up at once.
_BATCH = 200
#: When a sweep looks again at the logs that the last one uploaded.
_VERIFY_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadTimes:
    """The waits for uploads of logs, in seconds."""

    #: The log of an attempt that ended is given this long to reach the blob store; after that it is uploaded later.
    upload_seconds: float = 30.0
    #: How often logs that could not be uploaded are tried again.
    sweep_seconds: float = 30.0


class JobLogs:
    """The log files in a data folder. A file is written by one attempt, or uploaded, never both."""

    def __init__(self, data_dir: Path, blobs: Blobs, times: UploadTimes, changes: Changes | None = None) -> None:
        self._data_dir = data_dir
        self._blobs = blobs
        self._times = times
        self._changes = changes or Changes()
        self._open: Counter[str] = Counter()
        self._sweep_requested = asyncio.Event()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def opened(self, job: Job) -> AsyncIterator[LogWriter]:
        """Open the log for this attempt, behind the output of earlier attempts. Raises HostError."""
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

    async def keep(self, job_id: str, *, is_first: bool = False) -> None:
        """Upload the log; when that fails it stays in the data folder. Never raises.

        A log that is open stays too: its attempt uploads it. `is_first` tells that nothing of it was uploaded before.
        """
        if not is_first:
            await self._try_merge(job_id, self._times.upload_seconds, is_holder=True)
            return
        async with self._lock(job_id):
            path = log_path(self._data_dir, job_id)
            if (
                job_id not in self._open
                and path.exists()
                and await self._upload(job_id, path, self._times.upload_seconds)
            ):
                path.unlink(missing_ok=True)

    def note_lost(self, job: Job) -> None:
        """Note in the job's log that its last attempt was lost, behind that attempt's output.

        Tenants read the log, so the message names no paths; the job's record does.
        """
        lost = job.lost_attempts[-1]
        text = f"\n[belljar: attempt {lost.attempt} was lost: {without_paths(lost.message)}]\n"
        try:
            with LogWriter(log_path(self._data_dir, job.id), attempt=lost.attempt) as writer:
                writer.append(LogStream.CONSOLE, text.encode())
        except HostError as error:
            log.error("job_log_incomplete", job=job.id, error=error.message)

    async def sweep(self, claims: SqlClaims) -> None:
        """Upload the logs of jobs that have ended, and remove those of deleted jobs. Raises HostError.

        Other processes over the same data folder may sweep it too.
        """
        for batch in _batches(await asyncio.to_thread(self._closed)):
            jobs = await claims.statuses(batch)
            for job_id in batch:
                status, _ = jobs.get(job_id, (None, None))
                if status is None:
                    log_path(self._data_dir, job_id).unlink(missing_ok=True)  # deleted with its job
                elif status.terminal:
                    await self._try_merge(job_id, self._slow_seconds, is_holder=False)

    async def run(self, claims: SqlClaims) -> None:
        """Sweep at intervals, and when it is requested, until cancelled. Raises HostError."""
        while True:
            self._sweep_requested.clear()
            await self.sweep(claims)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._times.sweep_seconds):
                    await self._sweep_requested.wait()

    def request_sweep(self) -> None:
        """Have `run` sweep soon: a job ended whose log no attempt has open."""
        self._sweep_requested.set()

    def _closed(self) -> list[str]:
        folder = log_path(self._data_dir, "x").parent
        with contextlib.suppress(FileNotFoundError):
            names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".log")
            return [name for name in names if name not in self._open]
        return []

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._locks.setdefault(job_id, asyncio.Lock())

    async def _fetch(self, job_id: str) -> None:
        """Download the log of earlier attempts, unless a file that continues it is here."""
        path = log_path(self._data_dir, job_id)
        if path.exists():
            return
        part = path.with_suffix(".part")
        try:
            if await self._download(job_id, part):
                part.rename(path)
        except OSError as error:
            raise host_error(error, "download the job's log") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    async def _download(self, job_id: str, target: Path) -> bool:
        """Write the uploaded log to a file; return False when there is none. Raises HostError, OSError."""
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(NotFound), target.open("wb") as file:
            async for chunk in self._blobs.stream(log_blob(job_id)):
                file.write(chunk)
            return True
        return False

    @property
    def _slow_seconds(self) -> float:
        """The time limit of an upload in the background."""
        return 10 * self._times.upload_seconds

    async def _upload(self, job_id: str, path: Path, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._blobs.put_file(log_blob(job_id), path)
        except Exception as error:  # noqa: BLE001 (the job ends without its log in the blob store)
            report_failure("upload_log", error, job=job_id)
            return False
        return True

    async def _try_merge(self, job_id: str, seconds: float, *, is_holder: bool) -> None:
        try:
            await self._merge(job_id, seconds, is_holder=is_holder)
        except Exception as error:  # noqa: BLE001 (the other logs are uploaded all the same)
            report_failure("upload_log", error, job=job_id)

    async def _merge(self, job_id: str, seconds: float, *, is_holder: bool) -> None:
        """Upload the log merged with what is uploaded already: other processes may have served attempts.

        Unless the job's lease is held here, another process may replace the blob at the same time. So the file stays
        until another sweep finds all of it there. Raises HostError, NotFound.
        """
        path = log_path(self._data_dir, job_id)
        async with self._lock(job_id):
            if job_id in self._open:
                return
            try:
                with _locked(path) as is_locked:
                    if is_locked:
                        await self._merge_locked(job_id, path, seconds, is_holder=is_holder)
            except OSError as error:
                raise host_error(error, "upload a job's log") from error

    async def _merge_locked(self, job_id: str, path: Path, seconds: float, *, is_holder: bool) -> None:
        uploaded, merged = path.with_suffix(".uploaded"), path.with_suffix(".part")
        try:
            size, source, is_kept = path.stat().st_size, path, False
            async with asyncio.timeout(seconds):
                is_downloaded = await self._download(job_id, uploaded)
            if is_downloaded:
                source = merged
                is_kept = not await asyncio.to_thread(merge_logs, path, uploaded, merged)
            if not is_kept:
                is_uploaded = await self._upload(job_id, source, seconds)
                is_kept = is_uploaded and is_holder
                if is_uploaded and not is_holder:
                    asyncio.get_running_loop().call_later(_VERIFY_SECONDS, self.request_sweep)
            if is_kept and path.stat().st_size == size:  # what was added meanwhile is uploaded next time
                path.unlink()
        finally:
            with contextlib.suppress(OSError):
                uploaded.unlink(missing_ok=True)
                merged.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Keep other processes from uploading the file at `path` for the block.

    Yields False when one of them does, or when there is no such file. Raises OSError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield try_flock(descriptor) and is_current(path, descriptor)
    finally:
        os.close(descriptor)


def _batches(names: list[str]) -> list[list[str]]:
    return [names[at : at + _BATCH] for at in range(0, len(names), _BATCH)]
