"""/v1/jobs/{id}/logs: a job's output as text or as server-sent events, up to now or until its end."""

from __future__ import annotations

import codecs
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query

from belljar.control.api.authentication import end_error
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.api.streams import Stream, StreamAborted
from belljar.control.jobs.changes import Watch
from belljar.control.logs.log import MAX_ATTEMPT, JobLog, Record
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.model.errors import InvalidRequest
from belljar.model.log_stream import LogStream

router = APIRouter(prefix="/v1/jobs/{job_id}/logs", tags=["jobs"])

#: The interval of comment lines in a stream without output: they keep proxies from closing it, and show the server that
#: the client has disconnected.
_HEARTBEAT_SECONDS = 15


class Which(StrEnum):
    """The streams of a log that a client selects."""

    STDOUT = "stdout"
    STDERR = "stderr"
    CONSOLE = "console"
    BUILD = "build"
    ALL = "all"


_STREAMS = {
    Which.STDOUT: {LogStream.STDOUT},
    Which.STDERR: {LogStream.STDERR},
    Which.CONSOLE: {LogStream.CONSOLE},
    Which.BUILD: {LogStream.BUILD},
    Which.ALL: set(LogStream),
    None: {LogStream.STDOUT, LogStream.STDERR},
}
#: Browsers must not display a job's output as a page of this server.
_NO_SNIFF = {"X-Content-Type-Options": "nosniff"}
_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}


@router.get("", response_class=Stream, responses=_CONTENT, dependencies=[require(Scope.JOBS_READ)])
async def read_logs(
    job_id: str,
    services: ServicesDep,
    identity: IdentityDep,
    stream: Annotated[Which | None, Query(description="Default: stdout and stderr, in order.")] = None,
    follow: Annotated[bool, Query(description="Continue until the job has ended.")] = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(description="Resume after this event.")] = None,
) -> Stream:
    """Return the bytes as they were written; with `Accept: text/event-stream`, events with an id to resume from.

    `stdout` and `stderr` are those of the job's last attempt; `stream=all` includes the output of lost attempts and why
    they were lost. A client that follows a job may have read the output of an attempt that was lost later: `attempt` of
    each event is the number of its attempt.
    """
    job = await services.jobs.get(identity.project, job_id)
    reading = _Reading(services, identity, job_id, 0 if stream is Which.ALL else job.attempt)
    streams = _STREAMS[stream]
    if "text/event-stream" in accept:
        start = _offset(last_event_id)
        await reading.check(start)
        events = reading.events(streams, start, follow=follow)
        headers = {"Cache-Control": "no-cache", **_NO_SNIFF}
        return Stream(events, media_type="text/event-stream", headers=headers, on_disconnect=reading.disconnect)
    text = reading.text(streams, follow=follow)
    return Stream(text, media_type="text/plain; charset=utf-8", headers=_NO_SNIFF, on_disconnect=reading.disconnect)


def _offset(last_event_id: str | None) -> int:
    if last_event_id is None:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 15:
        raise InvalidRequest("invalid Last-Event-ID; send the id of an event from this stream")
    return int(last_event_id)


class _Reading:
    """One reader of one log."""

    def __init__(self, services: Services, identity: Identity, job_id: str, attempt: int) -> None:
        """Omit the output of attempts before `attempt`."""
        self._services = services
        self._changes = services.changes
        self._identity = identity
        self._attempt = min(attempt, MAX_ATTEMPT)
        self._job_id = job_id
        self._log = JobLog(services.settings.data_dir, services.blobs, job_id)
        self._is_disconnected = False

    def disconnect(self) -> None:
        """End the wait for more output, because the client has disconnected."""
        self._is_disconnected = True
        self._changes.notify_log(self._job_id)

    async def check(self, start: int) -> None:
        """Raise InvalidRequest unless a record begins at `start`, while an error response is still possible."""
        async with contextlib.aclosing(self._log.read(start)) as records:
            await anext(records, None)

    async def _records(self, start: int, *, follow: bool) -> AsyncGenerator[Record | None, None]:
        with self._changes.watching(self._job_id) as watch:
            records = self._log.follow(self._ended(watch), watch.wait, start) if follow else self._log.read(start)
            async with contextlib.aclosing(records):
                async for record in records:
                    self._check_open()
                    yield record

    def _ended(self, watch: Watch) -> Callable[[], Awaitable[bool]]:
        """Return a function that returns whether the job has ended; it reads the store only after a change."""

        async def ended() -> bool:
            self._check_open()
            if not watch.take_job_changed():
                return False
            return (await self._services.jobs.get(self._identity.project, self._job_id)).status.terminal

        return ended

    def _check_open(self) -> None:
        if self._is_disconnected:
            raise StreamAborted("the client disconnected")
        if (error := end_error(self._identity, self._changes)) is not None:
            raise StreamAborted(error.message)
        if self._changes.stopping:
            raise StreamAborted("the server stops")

    def _is_current(self, record: Record) -> bool:
        """Return whether the record is of the last attempt. Logs of earlier releases have no attempt (0)."""
        is_output = record.stream in (LogStream.STDOUT, LogStream.STDERR)
        return not is_output or record.attempt == 0 or record.attempt >= self._attempt

    async def text(self, streams: set[LogStream], *, follow: bool) -> AsyncGenerator[bytes | str, None]:
        """Yield the bytes as they were written."""
        async with contextlib.aclosing(self._records(0, follow=follow)) as records:
            async for record in records:
                if record is not None and record.stream in streams and self._is_current(record):
                    yield record.data

    async def events(self, streams: set[LogStream], start: int, *, follow: bool) -> AsyncGenerator[bytes | str, None]:
        """Yield events named for their stream with a JSON object {"text", "attempt"}, and `end` with the status."""
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in LogStream}
        sent_at = time.monotonic()
        async with contextlib.aclosing(self._records(start, follow=follow)) as records:
            async for record in records:
                now = time.monotonic()
                if record is None:
                    if now - sent_at > _HEARTBEAT_SECONDS:
                        sent_at = now
                        yield ": still here\n\n"
                elif record.stream in streams and self._is_current(record):
                    sent_at = now
                    text = decoders[record.stream].decode(record.data)
                    yield _event(record.stream.name.lower(), {"text": text, "attempt": record.attempt}, record.end)
        job = await self._services.jobs.get(self._identity.project, self._job_id)
        if job.status.terminal:
            yield _event("end", {"status": job.status, "exit_code": job.exit_code})


def _event(name: str, data: object, number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"
