"""Watches one QEMU over QMP: how its guest went down, whether the emulator itself gave up; and freezes a guest.

Source: QEMU's QMP reference manual (SHUTDOWN, STOP, GUEST_PANICKED, query-status; getfd, migrate).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine

import structlog
from qemu.qmp import EventListener, QMPClient, QMPError

from belljar.errors import MachineError, MachineTimeout

log = structlog.get_logger()

_CONNECT_SECONDS = 30
_FREEZE_SECONDS = 30
#: The memory is a file of its own.
_IGNORE_SHARED = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
_EVENTS = ("SHUTDOWN", "STOP", "GUEST_PANICKED")


class Monitor:
    """The QMP end of one machine. `watch` runs beside it; the rest is what was seen so far."""

    def __init__(self, name: str, end: socket.socket) -> None:
        self._client = QMPClient(name)
        self._end = end
        #: Reason of the SHUTDOWN event: `guest-shutdown`, `guest-reset`, `host-signal`, …
        self.shutdown_reason: str | None = None
        self.panicked = False
        self._connected = asyncio.Event()

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
        assert isinstance(answer, dict)
        return str(answer.get("status"))

    async def watch(self) -> str | None:
        """Listen until the emulator stops by an error of its own (its run state) or the connection ends (None).

        The connection ends with the process. It is this task alone that closes it, and better not cancelled before:
        QMPClient breaks when it is told to disconnect while it connects.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(self._end)
            self._connected.set()
            with self._client.listener(names=_EVENTS) as events:
                return await self._unless_gone(self._broken_state(events))
        except (QMPError, OSError, TimeoutError, EOFError) as error:
            log.debug("qmp_ended", machine=self._client.name, error=str(error))
            return None  # the process's own end says the rest
        finally:
            await self._disconnect()

    async def _unless_gone(self, work: Coroutine[None, None, str]) -> str | None:
        """What `work` returns, or None when the connection ends before: a listener is not told of that."""
        task, gone = asyncio.create_task(work), asyncio.create_task(self._client.runstate_changed())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _broken_state(self, events: EventListener) -> str:
        async for event in events:
            if event["event"] == "SHUTDOWN":
                data = event["data"]
                self.shutdown_reason = str(data.get("reason")) if isinstance(data, dict) else None
            elif event["event"] == "GUEST_PANICKED":
                self.panicked = True
            else:
                status = await self._client.execute("query-status")
                assert isinstance(status, dict)
                if status.get("status") in ("internal-error", "io-error", "guest-panicked"):
                    return str(status["status"])
        raise EOFError("no more events")

    async def _disconnect(self) -> None:
        try:
            async with asyncio.timeout(1):
                await self._client.disconnect()
        except (QMPError, OSError, TimeoutError, EOFError):
            pass
        finally:
            self._end.close()
