# Written by script/sdk from context_async.py; change that instead.
"""A context in a sandbox: code runs in it piece by piece, and its variables stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from belljar.client.code_result import CodeEvent, CodeResult, CodeResultBuilder, code_event
from belljar.client.errors import Unreachable, server_error
from belljar.client.event_stream import events_of
from belljar.client.transport import Transport

#: What of each stream a result has at most, if the caller sets no limit.
MAX_OUTPUT_BYTES = 16 << 20
#: What a caller may do with each piece of a run as it comes.
OnEvent = Callable[[CodeEvent], None]


class Context(dict[str, Any]):
    """A context: the fields of the API, as they were when it was last fetched."""

    def __init__(self, transport: Transport, sandbox_path: str, fields: dict[str, Any]) -> None:
        super().__init__(fields)
        self._transport = transport
        self._path = f"{sandbox_path}/contexts/{self.id}"

    @property
    def id(self) -> str:
        """The id of the context."""
        return str(self["id"])

    @property
    def language(self) -> str:
        """`python` or `javascript`."""
        return str(self["language"])

    @property
    def status(self) -> str:
        """`idle`, `running`, or `died`."""
        return str(self["status"])

    def refresh(self) -> Context:
        """Fetch the context's fields again; return it."""
        self.update(self._transport.json("GET", self._path))
        return self

    def run(
        self,
        code: str,
        *,
        timeout_seconds: float | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        on_event: OnEvent | None = None,
    ) -> CodeResult:
        """Run code and return what came of it, also if it raised something: see `result.error`, `result.check()`.

        After `timeout_seconds` (default: 300) it is interrupted. `on_event` is called with each piece as it comes.
        """
        body = run_body(code, timeout_seconds)
        events = run_events(self._transport, f"{self._path}/run", body)
        return collected(events, max_output_bytes, on_event)

    def stream(self, code: str, *, timeout_seconds: float | None = None) -> Generator[CodeEvent, None, None]:
        """Run code and yield output, results and errors as they come. The code is interrupted if you stop reading."""
        body = run_body(code, timeout_seconds)
        with contextlib.closing(run_events(self._transport, f"{self._path}/run", body)) as events:
            for event in events:
                if isinstance(event, CodeEvent):
                    yield event

    def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C does; the variables stay."""
        self.update(self._transport.json("POST", f"{self._path}/interrupt"))

    def restart(self) -> Context:
        """Start it anew, without its variables, also after it died; return it."""
        self.update(self._transport.json("POST", f"{self._path}/restart"))
        return self

    def delete(self) -> None:
        """End it with everything that runs in it."""
        self._transport.json("DELETE", self._path)


def run_events(
    transport: Transport, path: str, body: dict[str, Any]
) -> Generator[CodeEvent | dict[str, Any], None, None]:
    """Run code; yield its events, and the fields of its end at last.

    Raises ServerError (Conflict with the code `context_died` when the process of the context ended) and Unreachable:
    then it is not known how far the code came.
    """
    with contextlib.closing(events_of(transport, "POST", path, params={"stream": True}, json=body)) as events:
        for event in events:
            if event.name == "done":
                yield event.data
                return
            if event.name == "problem":
                status, code = int(event.data.get("status") or 502), str(event.data.get("code"))
                detail = str(event.data.get("detail"))
                raise server_error(status, code, detail, details=event.data, retry_after_seconds=None)
            yield code_event(event)
    raise Unreachable("the connection ended before the code did; its end is not known")


def collected(
    events: Generator[CodeEvent | dict[str, Any], None, None], max_output_bytes: int, on_event: OnEvent | None
) -> CodeResult:
    """Return the result of a run."""
    builder = CodeResultBuilder(max_output_bytes)
    with contextlib.closing(events):
        for event in events:
            if not isinstance(event, CodeEvent):
                return builder.end(event)
            builder.add(event)
            if on_event is not None:
                on_event(event)
    raise Unreachable("the connection ended before the code did; its end is not known")


def run_body(code: str, timeout_seconds: float | None) -> dict[str, Any]:
    return {"code": code} | ({} if timeout_seconds is None else {"timeout_seconds": timeout_seconds})
