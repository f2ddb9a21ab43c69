"""/v1/jobs/{id}/logs: what a job said, as text or as server-sent events, up to now or until it ends."""

from __future__ import annotations

import codecs
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query

from belljar.control.api.dependencies import Caller, ServicesDep
from belljar.control.api.services import Services
from belljar.control.api.streams import Stream, StreamBroken
from belljar.control.jobs.changes import Watch
from belljar.control.logs.log import MAX_ATTEMPT, JobLog, Record
from belljar.control.store.keys import Key
from belljar.model.errors import InvalidRequest
from belljar.model.log_stream import LogStream

router = APIRouter(prefix="/v1/jobs/{job_id}/logs", tags=["jobs"])

#: A comment line this often keeps proxies from closing a quiet stream, and tells the server when its reader has left.
_HEARTBEAT_SECONDS = 15


class Which(StrEnum):
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
#: What a job wrote is never shown as a page of this server's.
_NO_PAGE = {"X-Content-Type-Options": "nosniff"}
_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}


@router.get("", response_class=Stream, responses=_CONTENT)
async def read_logs(
    job_id: str,
    services: ServicesDep,
    key: Caller,
    stream: Annotated[Which | None, Query(description="Default: stdout and stderr, in their order.")] = None,
    follow: Annotated[bool, Query(description="Go on until the job has ended.")] = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(description="Resume behind this event.")] = None,
) -> Stream:
    """The bytes as they were written; or, for `Accept: text/event-stream`, events with an id to resume from.

    `stdout` and `stderr` are those of the job's last attempt; with `stream=all` one reads what lost attempts said too,
    and why they were lost. Who follows a job while an attempt is lost has read its output: the events' `attempt` tells
    which one it is of.
    """
    job = await services.jobs.get(key.project, job_id)
    reading = _Reading(services, key, job_id, 0 if stream is Which.ALL else job.attempt)
    wanted = _STREAMS[stream]
    if "text/event-stream" in accept:
        start = _offset(last_event_id)
        await reading.check(start)
        events = reading.events(wanted, start, follow=follow)
        headers = {"Cache-Control": "no-cache", **_NO_PAGE}
        return Stream(events, media_type="text/event-stream", headers=headers, on_left=reading.leave)
    text = reading.text(wanted, follow=follow)
    return Stream(text, media_type="text/plain; charset=utf-8", headers=_NO_PAGE, on_left=reading.leave)


def _offset(last_event_id: str | None) -> int:
    if last_event_id is None:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 15:
        raise InvalidRequest("Last-Event-ID is not one of ours; send the id of an event that was received")
    return int(last_event_id)


class _Reading:
    """One reader of one log."""

    def __init__(self, services: Services, key: Key, job_id: str, attempt: int) -> None:
        """Output of attempts before `attempt` is left out."""
        self._services = services
        self._changes = services.changes
        self._key = key
        self._attempt = min(attempt, MAX_ATTEMPT)
        self._job_id = job_id
        self._log = JobLog(services.settings.data_dir, services.blobs, job_id)
        self._has_left = False

    def leave(self) -> None:
        """The reader has left: end what waits for more."""
        self._has_left = True
        self._changes.notify_log(self._job_id)

    async def check(self, start: int) -> None:
        """Raises InvalidRequest where no record begins: once the answer has begun nothing can be said any more."""
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
        """Whether the job has ended; asks the store only after the job was changed."""

        async def ended() -> bool:
            self._check_open()
            if not watch.take_job_changed():
                return False
            return (await self._services.jobs.get(self._key.project, self._job_id)).status.terminal

        return ended

    def _check_open(self) -> None:
        if self._has_left:
            raise StreamBroken("the client left")
        if self._changes.is_revoked(self._key.id):
            raise StreamBroken("its key was revoked")
        if self._changes.stopping:
            raise StreamBroken("the server stops")

    def _is_current(self, record: Record) -> bool:
        """Whether no later attempt has said the same again. Logs of earlier releases do not say whose output it is."""
        is_output = record.stream in (LogStream.STDOUT, LogStream.STDERR)
        return not is_output or record.attempt == 0 or record.attempt >= self._attempt

    async def text(self, wanted: set[LogStream], *, follow: bool) -> AsyncGenerator[bytes | str, None]:
        """The bytes as they were written."""
        async with contextlib.aclosing(self._records(0, follow=follow)) as records:
            async for record in records:
                if record is not None and record.stream in wanted and self._is_current(record):
                    yield record.data

    async def events(self, wanted: set[LogStream], start: int, *, follow: bool) -> AsyncGenerator[bytes | str, None]:
        """Events named for their stream, with a JSON object {"text", "attempt"}; then `end` with the job's status."""
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in LogStream}
        said = time.monotonic()
        async with contextlib.aclosing(self._records(start, follow=follow)) as records:
            async for record in records:
                now = time.monotonic()
                if record is None:
                    if now - said > _HEARTBEAT_SECONDS:
                        said = now
                        yield ": still here\n\n"
                elif record.stream in wanted and self._is_current(record):
                    said = now
                    text = decoders[record.stream].decode(record.data)
                    yield _event(record.stream.name.lower(), {"text": text, "attempt": record.attempt}, record.end)
        job = await self._services.jobs.get(self._key.project, self._job_id)
        if job.status.terminal:
            yield _event("end", {"status": job.status, "exit_code": job.exit_code})


def _event(name: str, data: object, number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"
