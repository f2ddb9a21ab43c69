# Written by script/sdk from job_async.py; change that instead.
"""A job of a server: its fields as a mapping, and what can be done with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from belljar.client.errors import JobFailed, ServerError, Unreachable
from belljar.client.events import EventParser, MalformedEvent
from belljar.client.retry import delay_seconds

if TYPE_CHECKING:
    from belljar.client.client import Client

_ENDED = frozenset({"succeeded", "failed", "timed_out", "cancelled", "lost"})
#: `output` and `read_artifact` hold at most this much in memory; the generators have no limit.
_MAX_BYTES = 64 << 20
#: How much of stderr an error quotes.
_TAIL_CHARACTERS = 2000


@dataclass(frozen=True)
class Output:
    """A piece of a job's output: its stream (`stdout`, `stderr`…), its text, and the attempt that wrote it."""

    stream: str
    text: str
    attempt: int


class Job(dict[str, Any]):
    """A job: the fields of the API (`job["usage"]`), as they were when it was last fetched."""

    def __init__(self, client: Client, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._client = client

    @property
    def id(self) -> str:
        """The id of the job."""
        return str(self["id"])

    @property
    def status(self) -> str:
        """`queued`, `starting`, `running`, then `succeeded`, `failed`, `timed_out`, `cancelled` or `lost`."""
        return str(self["status"])

    @property
    def exit_code(self) -> int | None:
        """The exit code of the script, if it exited."""
        code: int | None = self["exit_code"]
        return code

    @property
    def is_ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in _ENDED

    def refresh(self) -> Job:
        """Fetch the job's fields again; return the job."""
        self.update(self._client.job(self.id))
        return self

    def wait(self, timeout_seconds: float | None = None) -> Job:
        """Wait until the job has ended, at most `timeout_seconds` (see `is_ended`); return the job."""
        self.update(self._client.wait(self.id, timeout_seconds))
        return self

    def cancel(self) -> Job:
        """Cancel the job; return it. A running job ends soon after."""
        self.update(self._client.cancel(self.id))
        return self

    def follow(self, stream: str | None = None) -> Generator[Output, None, None]:
        """Yield the job's output until the job has ended. A broken connection is continued where it broke off.

        `stream`: stdout, stderr, console, build or all; default: stdout and stderr.
        """
        transport = self._client.transport
        path, params = f"/v1/jobs/{self.id}/logs", {"follow": True} | ({"stream": stream} if stream else {})
        last_id, failures = "", 0
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
            parser = EventParser()
            try:
                with contextlib.closing(transport.lines(path, params=params, headers=headers)) as lines:
                    for line in lines:
                        event = parser.feed(line)
                        if event is None:
                            continue
                        if event.name == "end":
                            return
                        last_id, failures = event.id or last_id, 0
                        text, attempt = str(event.data.get("text", "")), event.data.get("attempt")
                        yield Output(event.name, text, attempt if isinstance(attempt, int) else 0)
                raise Unreachable("the log ended before its job; try again", is_temporary=True)
            except MalformedEvent as error:
                raise ServerError(200, "not_belljar", f"the log of {self.id} is malformed: {error}") from None
            except (ServerError, Unreachable) as error:
                delay = delay_seconds(error, failures, is_repeatable=True, max_retries=transport.max_retries)
                if delay is None:
                    raise
            failures += 1
            time.sleep(delay)

    def output(self, stream: str | None = None) -> str:
        """Return the job's output so far as text: stdout and stderr in order, or one stream, at most 64 MiB."""
        return (self._collect(self._client.logs(self.id, stream=stream), "the output")).decode(errors="replace")

    def metrics(self) -> dict[str, Any]:
        """Return what the job's machine used over its life: arrays `seconds`, `cpu`, `memory_bytes`, …"""
        return self._client.job_metrics(self.id)

    def artifacts(self) -> list[dict[str, Any]]:
        """Return path and size of each artifact."""
        return self._client.artifacts(self.id)

    def read_artifact(self, path: str) -> bytes:
        """Return the bytes of an artifact, at most 64 MiB; for larger ones: `client.artifact`."""
        return self._collect(self._client.artifact(self.id, path), f"the artifact {path}")

    def check(self) -> Job:
        """Return the job if it succeeded. Raises JobFailed with the reason and the end of stderr."""
        if self.status == "succeeded":
            return self
        reason = f"the job {self.id} is {self.status}"
        if self["error"]:
            reason += f": {self['error']['message']}"
        elif self["signal"] is not None:
            reason += f": signal {self['signal']}"
        elif self.exit_code is not None:
            reason += f": exit code {self.exit_code}"
        tail = ""
        if self.is_ended:
            with contextlib.suppress(ServerError, Unreachable):
                tail = (self.output("stderr"))[-_TAIL_CHARACTERS:].strip()
        raise JobFailed(f"{reason}\n\nstderr:\n{tail}" if tail else reason, self)

    def _collect(self, chunks: Any, what: str) -> bytes:
        data = bytearray()
        with contextlib.closing(chunks):
            for chunk in chunks:
                data += chunk
                if len(data) > _MAX_BYTES:
                    raise ServerError(200, "too_large", f"{what} of {self.id} is over 64 MiB; read it in pieces")
        return bytes(data)
