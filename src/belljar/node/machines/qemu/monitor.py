"""Watches one QEMU over QMP for the end of its guest and for faults of the emulator, and saves a guest's state.

The guest may have taken over its QEMU. So everything that QEMU sends is bounded before it is kept: the length of a
line, the number of unsolicited messages. Events are not queued: each changes a field or is dropped. A monitor that
exceeds the bounds ends the machine.

Source: QEMU's QMP reference manual (SHUTDOWN, STOP, GUEST_PANICKED, BLOCK_IO_ERROR, query-status; getfd, migrate;
add-fd, xen-save-devices-state).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from qemu.qmp import ExecuteError, QMPClient, QMPError
from qemu.qmp.message import Message

from belljar.model.errors import MachineError, MachineTimeout
from belljar.node.machines.deadline_uses import noted

log = structlog.get_logger()

_CONNECT_SECONDS = 30
_FREEZE_SECONDS = 30
_QUERY_SECONDS = 30
#: The memory is a file of its own.
_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
#: Number of the descriptor set that takes the state; those of disks count from 1.
_STATE_SET = 100
#: The longest line of a real QEMU has about two thousand bytes.
_MAX_LINE_BYTES = 64 * 1024
#: Bound on unsolicited messages; a machine's whole life has a few dozen.
_MAX_MESSAGES = 1000
_MESSAGES_PER_SECOND = 10.0
#: A guest can cause this event at will, with writes to a disk that is full on the host. It is read so slowly that it
#: costs nothing; QEMU keeps the rest in its own bounded memory.
_GUEST_EVENT = "BLOCK_IO_ERROR"
_GUEST_EVENT_SECONDS = 0.01
_BROKEN_STATES = ("internal-error", "io-error", "guest-panicked")
#: The library logs messages that it does not understand, whose text the guest may choose.
_no_log = logging.Logger("belljar.qmp", logging.CRITICAL + 1)


class MonitorFault(QMPError):
    """QEMU sent something other than QMP on its monitor, or too much of it."""


@dataclass(slots=True)
class _Budget:
    """A token bucket over unsolicited messages."""

    left: float = _MAX_MESSAGES
    at: float = field(default_factory=time.monotonic)

    def take(self) -> bool:
        """Return whether one more message is within the bounds, and count it."""
        now = time.monotonic()
        self.left = min(_MAX_MESSAGES, self.left + (now - self.at) * _MESSAGES_PER_SECOND)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class _BoundedClient(QMPClient):
    """A QMP client whose memory does not grow with QEMU's output. It calls `on_event` for each event."""

    def __init__(self, on_event: Callable[[str, object], None]) -> None:
        super().__init__(readbuflen=_MAX_LINE_BYTES)
        self.logger = _no_log
        self._on_event = on_event
        self._budget = _Budget()
        #: The reason why this client closed the connection, as a sentence; None while it has not.
        self.fault: str | None = None

    async def _do_recv(self) -> Message:
        try:
            return await super()._do_recv()
        except ValueError:  # asyncio.StreamReader.readline
            raise self._fault(f"a line of over {_MAX_LINE_BYTES} bytes") from None
        except (QMPError, RecursionError):
            raise self._fault("invalid QMP") from None

    async def _on_message(self, msg: Message) -> None:
        name = msg.get("event")
        if name is None and isinstance(number := msg.get("id"), str) and number in self._pending:
            if self._pending[number].full():
                raise self._fault("two replies to one command")
            await super()._on_message(msg)
            return
        if name == _GUEST_EVENT:
            await asyncio.sleep(_GUEST_EVENT_SECONDS)
        elif not self._budget.take():
            shown = re.sub(r"[^A-Z0-9_]", "?", str(name)[:40]) if name is not None else "a reply to no command"
            raise self._fault(f"over {_MAX_MESSAGES} unsolicited messages, the last one {shown}")
        if isinstance(name, str):
            self._on_event(name, msg.get("data"))

    def _fault(self, received: str) -> MonitorFault:
        self.fault = f"QEMU was killed because its monitor sent {received}: the guest may have taken it over"
        return MonitorFault(self.fault)


class Monitor:
    """The host's end of one machine's QMP connection. `watch` runs beside the machine and updates the fields."""

    def __init__(self, name: str, host_end: socket.socket, *, timeout_factor: float = 1.0) -> None:
        self._name = name
        self._factor = timeout_factor
        self._client = _BoundedClient(self._note)
        self._host_end = host_end
        #: Reason of the SHUTDOWN event: `guest-shutdown`, `guest-reset`, `host-signal`, …
        self.shutdown_reason: str | None = None
        self.panicked = False
        self._connected = asyncio.Event()
        #: QEMU stopped its guest since the last query for the reason.
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

        QEMU itself stops the guest, at the end of the migration. A guest that was stopped before would be stopped in
        every clone too.
        """
        seconds = _FREEZE_SECONDS * self._factor
        try:
            with noted("freeze", seconds):
                async with asyncio.timeout(seconds):
                    await self._write_state(state)
        except TimeoutError:
            raise MachineTimeout(f"QEMU did not write the machine's state within {seconds:g} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(f"the machine cannot be frozen: {error}") from error

    async def stop(self, state: int) -> None:
        """Stop the guest until `thaw`, and write the state of its devices to the descriptor. Raises MachineError.

        The state that is loaded runs, though the guest was stopped before: QEMU writes it so for this command.
        """
        await self._execute_in_time(lambda: self._save_devices(state), "freeze", "the machine cannot be frozen")

    async def thaw(self) -> None:
        """Let a guest that `stop` stopped continue. Raises MachineError."""
        await self._execute_in_time(self._continue, "thaw", "the machine cannot be continued")

    async def _continue(self) -> None:
        await self._client.execute("cont")
        with contextlib.suppress(ExecuteError):  # QEMU closes it only while its guest runs
            await self._client.execute("remove-fd", {"fdset-id": _STATE_SET})

    async def _execute_in_time(self, work: Callable[[], Awaitable[object]], what: str, failed: str) -> None:
        seconds = _FREEZE_SECONDS * self._factor
        try:
            with noted(what, seconds):
                async with asyncio.timeout(seconds):
                    await self._connected.wait()
                    await work()
        except TimeoutError:
            raise MachineTimeout(f"{failed}: QEMU did not answer within {seconds:g} s") from None
        except (QMPError, OSError, EOFError) as error:
            raise MachineError(f"{failed}: {error}") from error

    async def _save_devices(self, state: int) -> None:
        await self._client.execute("stop")
        self._client.send_fd_scm(state)
        added = await self._client.execute("add-fd", {"fdset-id": _STATE_SET})
        # Not the name of the set: QEMU would truncate the descriptor, which a pipe refuses.
        number = added.get("fd") if isinstance(added, dict) else None
        file = {"filename": f"/proc/self/fd/{number}", "live": False}
        await self._client.execute("xen-save-devices-state", file)

    async def _write_state(self, state: int) -> None:
        await self._connected.wait()
        self._client.send_fd_scm(state)
        await self._client.execute("getfd", {"fdname": "state"})
        await self._client.execute("migrate-set-capabilities", _IGNORE_SHARED)
        await self._client.execute("migrate", {"uri": "fd:state"})
        while (status := await self._migration()) != "completed":
            if status in ("failed", "cancelled"):
                raise MachineError("QEMU could not write the machine's state")
            await asyncio.sleep(0.005)

    async def _migration(self) -> str:
        answer = await self._client.execute("query-migrate")
        return str(answer.get("status")) if isinstance(answer, dict) else "failed"

    async def watch(self) -> str | None:
        """Watch until the machine must be killed, and return the reason; None when the connection ends.

        The connection ends with the process. Only this task closes it, and should not be cancelled before: QMPClient
        breaks when it has to disconnect while it connects.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS * self._factor):
                await self._client.connect(self._host_end)
            self._connected.set()
            return await self._until_broken()
        except Exception as error:  # noqa: BLE001 (the library lets every error that a reply causes pass)
            log.debug("qmp_ended", machine=self._name, error=str(error))
            return self._client.fault  # without a fault, the end of the process tells the reason
        finally:
            await self._disconnect()

    async def _until_broken(self) -> str | None:
        """Return the fault; None when the connection ends."""
        broken = asyncio.create_task(self._broken_state())
        disconnected = asyncio.create_task(self._client.runstate_changed())
        try:
            await asyncio.wait({broken, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            return await broken if broken.done() else self._client.fault
        finally:
            broken.cancel()
            disconnected.cancel()
            await asyncio.gather(broken, disconnected, return_exceptions=True)

    async def _broken_state(self) -> str:
        while True:
            await self._stopped.wait()
            self._stopped.clear()
            async with asyncio.timeout(_QUERY_SECONDS * self._factor):
                answer = await self._client.execute("query-status")
            state = answer.get("status") if isinstance(answer, dict) else None
            if state in _BROKEN_STATES:
                return f"QEMU stopped in the run state {state}"

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(1):
                await self._client.disconnect()
        except Exception as error:  # noqa: BLE001 (as in `watch`: it raises the connection's error again)
            log.debug("qmp_disconnected", machine=self._name, error=str(error))
        finally:
            self._host_end.close()
