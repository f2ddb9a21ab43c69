# Written by script/sdk from process_async.py; change that instead.
"""A command in a sandbox: its output as it comes, its input, signals, and how it ended."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Generator
from typing import Any

from belljar.client.command_result import CommandResult, ProcessOutput
from belljar.client.errors import ServerError, Unreachable
from belljar.client.event_stream import events_of
from belljar.client.events import Event
from belljar.client.retry import delay_seconds
from belljar.client.transport import Transport

_WAIT_SECONDS = 30


class Process(dict[str, Any]):
    """A command: the fields of the API, as they were when it was last fetched."""

    def __init__(
        self,
        transport: Transport,
        sandbox_path: str,
        fields: dict[str, Any],
        events: Generator[Event, None, None] | None = None,
    ) -> None:
        super().__init__(fields)
        self._transport = transport
        self._path = f"{sandbox_path}/processes/{self.pid}"
        #: The stream of the request that started the command, until it is read.
        self._events = events

    @classmethod
    def followed(cls, transport: Transport, sandbox_path: str, body: dict[str, Any]) -> Process:
        """Start a foreground command, whose output is followed from its first byte on."""
        path, body = f"{sandbox_path}/exec", {**body, "encoding": "base64"}
        events = events_of(transport, "POST", path, params={"stream": True}, json=body)
        try:
            started = next(events, None)
            if started is None or started.name != "started":
                raise Unreachable("the connection ended before the command was started", is_temporary=True)
            return cls(transport, sandbox_path, started.data, events)
        except BaseException:
            events.close()
            raise

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following the command. A foreground command is killed soon after, unless it is followed again."""
        if self._events is not None:
            self._events.close()
            self._events = None

    @property
    def pid(self) -> int:
        """The command's process number in the sandbox."""
        return int(self["pid"])

    @property
    def exit_code(self) -> int | None:
        """The exit code, once it has exited."""
        code: int | None = self.get("exit_code")
        return code

    @property
    def is_ended(self) -> bool:
        """Whether the command has ended."""
        return self.get("status") == "exited"

    def refresh(self) -> Process:
        """Fetch the command's fields again; return it."""
        self.update(self._transport.json("GET", self._path))
        return self

    def wait(self, timeout_seconds: float | None = None) -> Process:
        """Wait for the command's end, at most `timeout_seconds` (see `is_ended`); return it.

        A foreground command waits for its reader: read its `output`, or use `result`.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = _WAIT_SECONDS if deadline is None else min(_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
            self.update(self._transport.json("GET", self._path, params={"wait": left}))
            if self.is_ended or (deadline is not None and time.monotonic() >= deadline):
                return self

    def output(self) -> Generator[ProcessOutput, None, None]:
        """Yield the output until the command has ended. A broken connection is continued at the same byte.

        Of a background command that is what is kept of it, and what comes. Raises ServerError or Unreachable when the
        rest does not come: a stream that breaks off never ends like a complete one.
        """
        offsets = {"stdout": 0, "stderr": 0}
        failures = 0
        while True:
            events, self._events = self._events or self._reopened(offsets), None
            try:
                with contextlib.closing(events):
                    for event in events:
                        if event.name in ("stdout", "stderr"):
                            piece = _piece(event)
                            failures, offsets[event.name] = 0, piece.offset + len(piece.data)
                            yield piece
                        elif event.name == "exit":
                            self.update({**event.data, "status": "exited"})
                            return
                        elif event.name == "error":
                            code, detail = str(event.data.get("code")), str(event.data.get("detail"))
                            raise ServerError(502, code, detail, details=event.data)
                raise Unreachable("the output ended before its command; try again", is_temporary=True)
            except Unreachable as error:
                delay = delay_seconds(error, failures, is_repeatable=True, max_retries=self._transport.max_retries)
                if delay is None:
                    raise
            failures += 1
            time.sleep(delay)

    def result(self, max_output_bytes: int) -> CommandResult:
        """Read all output, keep at most so many bytes of each stream, and return how the command ended."""
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        truncated = {"stdout": False, "stderr": False}
        with contextlib.closing(self.output()) as pieces:
            for piece in pieces:
                data = kept[piece.stream]
                room = max(0, max_output_bytes - len(data))
                truncated[piece.stream] |= len(piece.data) > room or piece.offset > len(data)
                data += piece.data[:room]
        return CommandResult(
            exit_code=self["exit_code"],
            signal=self["signal"],
            timed_out=bool(self["timed_out"]),
            stdout_bytes=bytes(kept["stdout"]),
            stderr_bytes=bytes(kept["stderr"]),
            stdout_truncated=truncated["stdout"],
            stderr_truncated=truncated["stderr"],
            fields=dict(self),
        )

    def write(self, data: bytes | str) -> None:
        """Send input, which `keep_stdin_open` or `pty` left open. Waits until the command has room for it."""
        content = data.encode() if isinstance(data, str) else data
        self._transport.json("POST", f"{self._path}/stdin", content=content)

    def close_stdin(self) -> None:
        """End the input."""
        self._transport.json("POST", f"{self._path}/stdin", params={"end": True})

    def signal(self, name: str | int = "SIGTERM") -> None:
        """Send a signal to the command's process group."""
        self._transport.json("POST", f"{self._path}/signal", json={"signal": name})

    def kill(self) -> None:
        """Kill the command with every process that it started."""
        body = {"signal": "SIGKILL", "descendants": True}
        self._transport.json("POST", f"{self._path}/signal", json=body, is_repeatable=True)

    def resize(self, columns: int, rows: int) -> None:
        """Set the size of the command's terminal."""
        body = {"columns": columns, "rows": rows}
        self._transport.json("POST", f"{self._path}/resize", json=body, is_repeatable=True)

    def forget(self) -> None:
        """Kill the command if it runs, and forget its output and its exit."""
        self._transport.json("DELETE", self._path)

    def _reopened(self, offsets: dict[str, int]) -> Generator[Event, None, None]:
        params = {"encoding": "base64", "stdout_from": offsets["stdout"], "stderr_from": offsets["stderr"]}
        return events_of(self._transport, "GET", f"{self._path}/output", params=params)


def _piece(event: Event) -> ProcessOutput:
    try:
        data, offset = base64.b64decode(event.data["data"], validate=True), int(event.data["offset"])
    except (KeyError, TypeError, ValueError):
        raise ServerError(200, "not_belljar", "the output is malformed: an event has no data") from None
    return ProcessOutput("stdout" if event.name == "stdout" else "stderr", data, offset)
