"""/v1/jobs/{id}/logs: what a job said, as text or as server-sent events, up to now or until it ends."""

from __future__ import annotations

import codecs
import contextlib
import json
import time
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.responses import StreamingResponse

from belljar.api.asked import Asked, Project
from belljar.api.services import Services
from belljar.blobs.log import MAX_ATTEMPT, JobLog, LogStream, Record
from belljar.errors import InvalidRequest

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
_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}, "text/event-stream": {}}}}


@router.get("", response_class=StreamingResponse, responses=_CONTENT)
async def read_logs(
    job_id: str,
    services: Asked,
    project: Project,
    stream: Annotated[Which | None, Query(description="Default: stdout and stderr, in their order.")] = None,
    follow: Annotated[bool, Query(description="Go on until the job has ended.")] = False,
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str | None, Header(description="Resume behind this event.")] = None,
) -> StreamingResponse:
    """The bytes as they were written; or, for `Accept: text/event-stream`, events with an id to resume from.

    `stdout` and `stderr` are those of the job's last attempt; with `stream=all` one reads what lost attempts said too,
    and why they were lost. Who follows a job while an attempt is lost has read its output: the events' `attempt` tells
    which one it is of.
    """
    job = await services.jobs.get(project, job_id)
    reading = _Reading(services, project, job_id, 0 if stream is Which.ALL else job.attempt)
    wanted = _STREAMS[stream]
    if "text/event-stream" in accept:
        start = _offset(last_event_id)
        await reading.check(start)
        events = reading.events(wanted, start, follow=follow)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    return StreamingResponse(reading.text(wanted, follow=follow), media_type="text/plain; charset=utf-8")


def _offset(last_event_id: str | None) -> int:
    if last_event_id is None:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit() or len(last_event_id) > 15:
        raise InvalidRequest("Last-Event-ID is not one of ours; send the id of an event that was received")
    return int(last_event_id)


class _Reading:
    """One reader of one log."""

    def __init__(self, services: Services, project: str, job_id: str, attempt: int) -> None:
        """Output of attempts before `attempt` is left out."""
        self._services = services
        self._attempt = min(attempt, MAX_ATTEMPT)
        self._project = project
        self._job_id = job_id
        self._log = JobLog(services.settings.data_dir, services.blobs, job_id)

    async def check(self, start: int) -> None:
        """Raises InvalidRequest where no record begins: once the answer has begun nothing can be said any more."""
        async with contextlib.aclosing(self._log.read(start)) as records:
            await anext(records, None)

    async def _ended(self) -> bool:
        return (await self._services.jobs.get(self._project, self._job_id)).status.terminal

    async def _records(self, start: int, *, follow: bool) -> AsyncIterator[Record | None]:
        if not follow:
            async for record in self._log.read(start):
                yield record
            return
        async for found in self._log.follow(self._ended, start):
            yield found

    async def text(self, wanted: set[LogStream], *, follow: bool) -> AsyncIterator[bytes]:
        async for record in self._records(0, follow=follow):
            if record is not None and record.stream in wanted and self._is_current(record):
                yield record.data

    def _is_current(self, record: Record) -> bool:
        """Whether no later attempt has said the same again. Logs of earlier releases do not say whose output it is."""
        is_output = record.stream in (LogStream.STDOUT, LogStream.STDERR)
        return not is_output or record.attempt == 0 or record.attempt >= self._attempt

    async def events(self, wanted: set[LogStream], start: int, *, follow: bool) -> AsyncIterator[str]:
        """Events named for their stream, with a JSON object {"text", "attempt"}; then `end` with the job's status."""
        decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in LogStream}
        said = time.monotonic()
        async for record in self._records(start, follow=follow):
            now = time.monotonic()
            if record is None:
                if now - said > _HEARTBEAT_SECONDS:
                    said = now
                    yield ": still here\n\n"
            elif record.stream in wanted and self._is_current(record):
                said = now
                text = decoders[record.stream].decode(record.data)
                yield _event(record.stream.name.lower(), {"text": text, "attempt": record.attempt}, record.end)
        job = await self._services.jobs.get(self._project, self._job_id)
        if job.status.terminal:
            yield _event("end", {"status": job.status, "exit_code": job.exit_code})


def _event(name: str, data: object, number: int | None = None) -> str:
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"
