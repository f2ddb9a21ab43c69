"""The lease of one attempt, by this node's own monotonic clock: an attempt that outlives it is stopped.

Whoever else may be given the job afterwards must not meet this node's machine: so it ends a little before the lease
does, or at once when the store says that the lease is gone.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

#: Part of a lease that is kept for ending the machine.
_MARGIN = 0.1


class Lease:
    """An async context manager for what may only be done under the lease. Raises TimeoutError when it runs out.

    Whether a TimeoutError is the lease's is what `lost` says.
    """

    def __init__(self, asked_at: float, seconds: float) -> None:
        """`asked_at` is the event loop's time before the store was asked for the lease of so many seconds."""
        self._timeout = asyncio.timeout_at(_until(asked_at, seconds))
        self._open = False
        #: Why this node does not hold it any more.
        self.lost: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether something is done under it now."""
        return self._open

    def renewed(self, asked_at: float, seconds: float) -> None:
        """The store has given it for so many seconds from `asked_at` on."""
        if self._open and self.lost is None and not self._timeout.expired():
            self._timeout.reschedule(_until(asked_at, seconds))

    def lose(self, reason: str) -> None:
        """The store says that it is gone: stop what is done under it."""
        self.lost = self.lost or reason
        if self._open and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """The machine is ended: what is left to do is guarded by the store, and is not stopped.

        From here on the store alone says whether it is lost: it is renewed until the store knows how the job ended.
        """
        if self._open and not self._timeout.expired():
            self._timeout.reschedule(None)
        self._open = False
        self.lost = None

    async def __aenter__(self) -> Lease:
        await self._timeout.__aenter__()
        self._open = True
        if self.lost is not None:
            self.lose(self.lost)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            self.lost = self.lost or "the worker could not renew its lease in time"
            raise


def _until(asked_at: float, seconds: float) -> float:
    return asked_at + seconds * (1 - _MARGIN)
