"""One run of code in a context: its events for the caller, and its end at the latest at its timeout.

A run that takes too long, or whose caller has gone, is interrupted; a kernel that ignores that is started anew. So the
kernel is ready for the next run afterwards, or has ended, and the caller gets to know which.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from belljar.control.sandboxes.kernel_messages import MAX_VALUES, KernelViolation, Message, MessageReader
from belljar.control.sandboxes.kernel_process import conversation, died, request_line
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import BelljarError
from belljar.model.log_stream import LogStream
from belljar.model.sandbox_errors import ContextDied, ProcessNotFound, StreamBroken
from belljar.model.sandbox_values import ProcessExit, ProcessInfo, ProcessOutput
from belljar.system.background import report_failure

log = structlog.get_logger()

#: How long an interrupted kernel has to become ready for the next run.
INTERRUPT_SECONDS = 5.0
#: Results of one run beyond these are dropped.
MAX_RESULTS = 200
MAX_RESULT_BYTES = 8 * 1024 * 1024
#: Events that wait for a slow caller, by their size.
_MAX_WAITING_BYTES = 1024 * 1024
#: What an event takes beside its text.
_EVENT_BYTES = 512
#: What the end of a kernel's own stderr may say about its death.
_MAX_TAIL = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """`stdout`, `stderr`, `result`, `error`, or `done`, which is the last."""

    kind: str
    data: dict[str, Any]
    size_bytes: int = 0


class CodeRun:
    """One run. `carry_out` does the work, `events` is for the caller, who calls `abandon` when it leaves early."""

    def __init__(
        self,
        machine: SandboxMachine,
        process: ProcessInfo,
        code: str,
        timeout_seconds: float,
        restart: Callable[[], Awaitable[object]],
    ) -> None:
        """`restart` kills the kernel and starts it anew."""
        self._machine = machine
        self._process = process
        self._code = code
        self._timeout_seconds = timeout_seconds
        self._restart = restart
        self._id = secrets.token_urlsafe(9)
        self._began = time.monotonic()
        self._waiting: deque[Event] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._failure: BelljarError | None = None
        self._is_over = False
        self._is_abandoned = asyncio.Event()
        self._is_timed_out = False
        self._has_dropped_output = False
        self._dropped_results = 0
        self._results = 0
        self._result_bytes = 0
        self._result_values = 0
        self._has_error = False
        self._tail = bytearray()
        self._stderr = codecs.getincrementaldecoder("utf-8")("replace")

    # --- the caller -------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the events to `done`. Raises ContextDied, and what the sandbox's calls raise: then it broke off."""
        while True:
            while self._waiting:
                event = self._waiting.popleft()
                self._waiting_bytes -= event.size_bytes + _EVENT_BYTES
                self._notify()
                yield event
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                return
            await self._changed.wait()

    def abandon(self) -> None:
        """Interrupt the run: nobody wants its events any more."""
        self._is_abandoned.set()
        self._notify()

    # --- the work ---------------------------------------------------------------------------------------------------

    async def carry_out(self) -> None:
        """Run the code. What fails is raised by `events`."""
        try:
            await self._run()
        except BelljarError as error:
            self._failure = error
        except asyncio.CancelledError:
            self._failure = StreamBroken("the server stops; what became of the code is not known")
            raise
        except Exception as error:  # noqa: BLE001 (the caller waits for an end)
            report_failure("run_code", error, process=self._process.id)
            self._failure = BelljarError("internal error; see the server's log")
        finally:
            self._is_over = True
            self._notify()

    async def _run(self) -> None:
        conversing = asyncio.create_task(self._converse())
        leaving = asyncio.create_task(self._is_abandoned.wait())
        try:
            tasks = {conversing, leaving}
            await asyncio.wait(tasks, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not conversing.done():
                self._is_timed_out = not self._is_abandoned.is_set()
                self._notify()
                await self._interrupt(conversing)
            if conversing.done():
                await self._finish(conversing.result())
            else:
                await self._start_anew()
        finally:
            for task in (conversing, leaving):
                task.cancel()
            await asyncio.gather(conversing, leaving, return_exceptions=True)

    async def _interrupt(self, conversing: asyncio.Task[int]) -> None:
        with contextlib.suppress(BelljarError):  # it has ended, or the machine has: the conversing says how
            await self._machine.signal(self._process.id, "SIGINT")
        await asyncio.wait({conversing}, timeout=INTERRUPT_SECONDS)

    async def _start_anew(self) -> None:
        log.info("context_restarted", process=self._process.id, timed_out=self._is_timed_out)
        try:
            await self._restart()
        except ProcessNotFound:
            raise _forgotten() from None
        seconds = f"{self._timeout_seconds:g} s"
        message = (
            f"the code ran for over {seconds} and did not stop when it was interrupted; the context was restarted and "
            "its variables are lost"
        )
        await self._emit(Event("error", {"name": "TimedOut", "message": message, "traceback": ""}))
        await self._finish(None)

    async def _finish(self, execution_count: int | None) -> None:
        """Emit the last event. `execution_count` None: the kernel was started anew."""
        data = {
            "execution_count": execution_count,
            "timed_out": self._is_timed_out,
            "restarted": execution_count is None,
            "output_dropped": self._has_dropped_output,
            "results_dropped": self._dropped_results,
            "duration_ms": round((time.monotonic() - self._began) * 1000, 3),
        }
        self._waiting.append(Event("done", data))  # behind it nothing waits

    async def _converse(self) -> int:
        """Send the code, and pass on what comes of it. Return the kernel's count of runs."""
        process = await self._machine.process(self._process.id)
        if process.exit is not None:
            raise died(process.exit, "")
        first = {"stdout_from": process.stdout_bytes, "stderr_from": process.stderr_bytes}
        request = request_line(self._id, self._code)
        try:
            async with conversation(self._machine, process.id, request, **first) as output:
                return await self._read(output)
        except KernelViolation as error:
            await self._machine.kill(process.id)
            raise died(None, str(error)) from None
        except StreamBroken:
            await self._explain_break()
            raise

    async def _read(self, output: AsyncIterator[ProcessOutput | ProcessExit]) -> int:
        messages = MessageReader()
        async for piece in output:
            if isinstance(piece, ProcessExit):
                raise died(piece, self._tail.decode(errors="replace"))
            if piece.stream is LogStream.STDERR:
                self._tail = (self._tail + piece.data)[-_MAX_TAIL:]
                await self._emit_text("stderr", self._stderr.decode(piece.data))
                continue
            async with contextlib.aclosing(messages.feed(piece.data)) as found:
                async for message, size in found:
                    if (count := await self._handle(message, size)) is not None:
                        return count
        raise StreamBroken("the output of the context broke off before its code had ended")

    async def _explain_break(self) -> None:
        """Raise ContextDied if the kernel was forgotten; otherwise nothing is known."""
        try:
            await self._machine.process(self._process.id)
        except ProcessNotFound:
            raise _forgotten() from None

    async def _handle(self, message: Message, size: int) -> int | None:
        """Pass one message on. Return the kernel's count when it was the last."""
        if message.kind == "unreadable":
            self._dropped_results += 1
        if message.run != self._id:
            return None  # what an earlier run, which was given up, has left
        if message.kind == "done":
            return int(message.fields["execution_count"])
        if message.kind == "result":
            await self._emit_result(message, size)
        elif message.kind in ("stdout", "stderr"):
            await self._emit_text(message.kind, message.fields["text"])
        elif message.kind == "error" and not self._has_error:  # a kernel of ours sends one
            self._has_error = True
            await self._emit(Event("error", message.fields, size))
        return None

    async def _emit_text(self, kind: str, text: str) -> None:
        if text:
            await self._emit(Event(kind, {"text": text}, len(text)))

    async def _emit_result(self, message: Message, size: int) -> None:
        size_after, values_after = self._result_bytes + size, self._result_values + message.values
        if self._results >= MAX_RESULTS or size_after > MAX_RESULT_BYTES or values_after > MAX_VALUES:
            self._dropped_results += 1
            return
        self._results += 1
        self._result_bytes, self._result_values = size_after, values_after
        await self._emit(Event("result", message.fields, size))

    async def _emit(self, event: Event) -> None:
        """Hand an event to the caller, waiting while it has many; not for long beyond the timeout."""
        while self._waiting_bytes >= _MAX_WAITING_BYTES and not self._is_abandoned.is_set():
            if self._is_timed_out and event.kind == "error":  # one of the kernel, and one that it did not stop
                break
            if self._is_timed_out:
                self._has_dropped_output = True
                return
            await self._changed.wait()
        if not self._is_abandoned.is_set():
            self._waiting.append(event)
            self._waiting_bytes += event.size_bytes + _EVENT_BYTES
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _forgotten() -> ContextDied:
    return ContextDied("the context was restarted or deleted while the code ran; run it again if it was restarted")
