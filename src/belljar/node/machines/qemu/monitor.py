"""Watches one QEMU over QMP: how its guest went down, whether the emulator itself gave up; and freezes a guest.

The guest may have taken over its QEMU. So what comes from there is bounded before it is kept: the length of a line, the
number of messages that nobody asked for. Events are not queued: each changes a field or is dropped. A monitor that says
more than any QEMU does is a reason to end the machine.

Source: QEMU's QMP reference manual (SHUTDOWN, STOP, GUEST_PANICKED, BLOCK_IO_ERROR, query-status; getfd, migrate).
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
from qemu.qmp import QMPClient, QMPError
from qemu.qmp.message import Message

from belljar.model.errors import MachineError, MachineTimeout

log = structlog.get_logger()

_CONNECT_SECONDS = 30
_FREEZE_SECONDS = 30
_QUERY_SECONDS = 30
#: The memory is a file of its own.
_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
#: The longest line that QEMU says to us has about two thousand bytes.
_MAX_LINE_BYTES = 64 * 1024
#: Messages that nobody asked for: a whole machine's life has a few dozen.
_MAX_MESSAGES = 1000
_MESSAGES_PER_SECOND = 10.0
#: One that a guest causes as often as it likes, with writes to a disk that has no room left on the host. It is read so
#: slowly that it costs nothing; QEMU keeps the rest in its own bounded memory.
_GUEST_EVENT = "BLOCK_IO_ERROR"
_GUEST_EVENT_SECONDS = 0.01
_BROKEN_STATES = ("internal-error", "io-error", "guest-panicked")
#: The library logs what it does not understand, which is the guest's to choose.
_no_log = logging.Logger("belljar.qmp", logging.CRITICAL + 1)


class MonitorFault(QMPError):
    """What QEMU says on its monitor is no QMP, or too much of it."""


@dataclass(slots=True)
class _Budget:
    """A token bucket over messages that nobody asked for."""

    left: float = _MAX_MESSAGES
    at: float = field(default_factory=time.monotonic)

    def take(self) -> bool:
        """Whether one more is within the bounds."""
        now = time.monotonic()
        self.left = min(_MAX_MESSAGES, self.left + (now - self.at) * _MESSAGES_PER_SECOND)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class _BoundedClient(QMPClient):
    """A QMP client whose memory does not grow with what QEMU says. `on_event` gets the events."""

    def __init__(self, on_event: Callable[[str, object], None]) -> None:
        super().__init__(readbuflen=_MAX_LINE_BYTES)
        self.logger = _no_log
        self._on_event = on_event
        self._budget = _Budget()
        #: Why this client gave up on QEMU, in a sentence; None while it has not.
        self.fault: str | None = None

    async def _do_recv(self) -> Message:
        try:
            return await super()._do_recv()
        except ValueError:  # asyncio.StreamReader.readline
            raise self._fault(f"a line of over {_MAX_LINE_BYTES} bytes") from None
        except (QMPError, RecursionError):
            raise self._fault("something that is no QMP") from None

    async def _on_message(self, msg: Message) -> None:
        name = msg.get("event")
        if name is None and isinstance(number := msg.get("id"), str) and number in self._pending:
            if self._pending[number].full():
                raise self._fault("two answers to one question")
            await super()._on_message(msg)
            return
        if name == _GUEST_EVENT:
            await asyncio.sleep(_GUEST_EVENT_SECONDS)
        elif not self._budget.take():
            shown = re.sub(r"[^A-Z0-9_]", "?", str(name)[:40]) if name is not None else "an answer to no question"
            raise self._fault(f"over {_MAX_MESSAGES} things that it was not asked, the last of them {shown}")
        if isinstance(name, str):
            self._on_event(name, msg.get("data"))

    def _fault(self, what: str) -> MonitorFault:
        self.fault = f"QEMU was ended, since its monitor said {what}: the guest may have taken it over"
        return MonitorFault(self.fault)


class Monitor:
    """The QMP end of one machine. `watch` runs beside it; the rest is what was seen so far."""

    def __init__(self, name: str, end: socket.socket) -> None:
        self._name = name
        self._client = _BoundedClient(self._note)
        self._end = end
        #: Reason of the SHUTDOWN event: `guest-shutdown`, `guest-reset`, `host-signal`, …
        self.shutdown_reason: str | None = None
        self.panicked = False
        self._connected = asyncio.Event()
        #: QEMU stopped its guest since it was last asked why.
        self._stopped = asyncio.Event()

    def _note(self, event: str, data: object) -> None:
        if event == "SHUTDOWN" and isinstance(data, dict):
            self.shutdown_reason = re.sub(r"[^a-z-]", "?", str(data.get("reason"))[:40])
        elif event == "GUEST_PANICKED":
            self.panicked = True
        elif event == "STOP":
            self._stopped.set()

    async def freeze(self, state: int) -> None:
        """Stop the guest for good and write its device state to the descriptor. Raises MachineError.

        It is QEMU that stops it, at the end of the migration: a guest that was stopped before would be stopped in every
        clone too.
        """
        try:
            async with asyncio.timeout(_FREEZE_SECONDS):
                await self._connected.wait()
                self._client.send_fd_scm(state)
                await self._client.execute("getfd", {"fdname": "state"})
                await self._client.execute("migrate-set-capabilities", _IGNORE_SHARED)
                await self._client.execute("migrate", {"uri": "fd:state"})
                while (status := await self._migration()) != "completed":
                    if status in ("failed", "cancelled"):
                        raise MachineError("QEMU could not write the machine's state")
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise MachineTimeout(f"QEMU did not write the machine's state within {_FREEZE_SECONDS} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(f"the machine cannot be frozen: {error}") from error

    async def _migration(self) -> str:
        answer = await self._client.execute("query-migrate")
        return str(answer.get("status")) if isinstance(answer, dict) else "failed"

    async def watch(self) -> str | None:
        """Listen until the machine must be ended, which is a sentence why, or the connection ends (None).

        The connection ends with the process. It is this task alone that closes it, and better not cancelled before:
        QMPClient breaks when it is told to disconnect while it connects.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(self._end)
            self._connected.set()
            return await self._until_broken()
        except Exception as error:  # noqa: BLE001 (the library lets whatever a reply did to it come through)
            log.debug("qmp_ended", machine=self._name, error=str(error))
            return self._client.fault  # else the process's own end says the rest
        finally:
            await self._disconnect()

    async def _until_broken(self) -> str | None:
        """Return the fault; None when the connection ends."""
        task, gone = asyncio.create_task(self._broken_state()), asyncio.create_task(self._client.runstate_changed())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else self._client.fault
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _broken_state(self) -> str:
        while True:
            await self._stopped.wait()
            self._stopped.clear()
            async with asyncio.timeout(_QUERY_SECONDS):
                answer = await self._client.execute("query-status")
            state = answer.get("status") if isinstance(answer, dict) else None
            if state in _BROKEN_STATES:
                return f"QEMU stopped in the run state {state}"

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(1):
                await self._client.disconnect()
        except Exception as error:  # noqa: BLE001 (as in `watch`: it raises again what ended the connection)
            log.debug("qmp_disconnected", machine=self._name, error=str(error))
        finally:
            self._end.close()
