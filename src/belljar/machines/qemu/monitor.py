"""Watches one QEMU over QMP: how its guest went down, and whether the emulator itself gave up.

Source: QEMU's QMP reference manual (SHUTDOWN, STOP, GUEST_PANICKED, query-status).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine

import structlog
from qemu.qmp import EventListener, QMPClient, QMPError

log = structlog.get_logger()

_CONNECT_SECONDS = 30
_EVENTS = ("SHUTDOWN", "STOP", "GUEST_PANICKED")


class Monitor:
    """The QMP end of one machine. `watch` runs beside it; the rest is what was seen so far."""

    def __init__(self, name: str, end: socket.socket) -> None:
        self._client = QMPClient(name)
        self._end = end
        #: Reason of the SHUTDOWN event: `guest-shutdown`, `guest-reset`, `host-signal`, …
        self.shutdown_reason: str | None = None
        self.panicked = False

    async def watch(self) -> str | None:
        """Listen until the emulator stops by an error of its own (its run state) or the connection ends (None).

        The connection ends with the process. It is this task alone that closes it, and better not cancelled before:
        QMPClient breaks when it is told to disconnect while it connects.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(self._end)
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
