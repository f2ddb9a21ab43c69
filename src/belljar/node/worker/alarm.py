"""An alarm: the alert that ends a job or sandbox."""

from __future__ import annotations

import asyncio

from belljar.model.flows import FlowAlert


class Alarm:
    """Rings once, with the first alert. Belongs to one event loop."""

    def __init__(self) -> None:
        self.alert: FlowAlert | None = None
        self._rung = asyncio.Event()

    def ring(self, alert: FlowAlert) -> None:
        """Ring, unless it has rung before."""
        if self.alert is None:
            self.alert = alert
            self._rung.set()

    async def wait(self) -> FlowAlert:
        """Wait until it rings, and return the alert."""
        await self._rung.wait()
        assert self.alert is not None
        return self.alert
