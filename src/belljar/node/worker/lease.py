"""The lease of one attempt, by this node's own monotonic clock: an attempt that outlives it is stopped.

The job may be given to another node when the lease ends: so this node's machine ends a little before that, or at once
when the control plane says that the lease is lost.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

#: The share of a lease that is reserved for ending the machine.
_MARGIN = 0.1


class Lease:
    """An async context manager for work that needs the lease. Raises TimeoutError when the lease runs out.

    `lost` tells whether a TimeoutError is the lease's.
    """

    def __init__(self, requested_at: float, seconds: float) -> None:
        """`requested_at` is the event loop's time before the lease of so many seconds was requested."""
        self._timeout = asyncio.timeout_at(_deadline(requested_at, seconds))
        self._open = False
        #: Why this node does not hold it any more.
        self.lost: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether work is done under it now."""
        return self._open

    def renewed(self, requested_at: float, seconds: float) -> None:
        """Move the end to so many seconds after `requested_at`."""
        if self._open and self.lost is None and not self._timeout.expired():
            self._timeout.reschedule(_deadline(requested_at, seconds))

    def lose(self, reason: str) -> None:
        """Stop the work under the lease: the control plane says that it is lost."""
        self.lost = self.lost or reason
        if self._open and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Let the rest of the work go on without a deadline: the machine has ended.

        What is left to do is guarded by the control plane, which alone says from here on whether the lease is lost. It
        is renewed until the control plane knows how the job ended.
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


def _deadline(requested_at: float, seconds: float) -> float:
    return requested_at + seconds * (1 - _MARGIN)
