"""Watches one QEMU over QMP: how its guest went down, and whether the emulator itself gave up.

Source: QEMU's QMP reference manual (SHUTDOWN, STOP, GUEST_PANICKED, query-status).
"""

from __future__ import annotations

import asyncio
import socket

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

    async def watch(self) -> str:
        """Listen until the emulator has stopped by an error of its own; returns its run state. Otherwise never ends."""
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._client.connect(self._end)
            with self._client.listener(names=_EVENTS) as events:
                return await self._broken_state(events)
        except (QMPError, OSError, TimeoutError, EOFError, asyncio.IncompleteReadError) as error:
            log.debug("qmp_ended", machine=self._client.name, error=str(error))
        await asyncio.Event().wait()  # the process's own end says the rest
        raise AssertionError

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

    async def close(self) -> None:
        """Let go of the connection; safe in every state."""
        try:
            async with asyncio.timeout(1):
                await self._client.disconnect()
        except (QMPError, OSError, TimeoutError, EOFError):
            pass
        finally:
            self._end.close()
