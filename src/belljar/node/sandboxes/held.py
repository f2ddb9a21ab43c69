"""A sandbox that this node was given: its lease, its deadline by this node's own clock, and why it is to end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime
from typing import Any, TypeVar

import structlog

from belljar.link.sandboxes import SandboxAssignment, SandboxLease, SandboxOrder
from belljar.model.sandbox import EndReason, Sandbox, SandboxEnd
from belljar.node.worker.lease import Lease

log = structlog.get_logger()

T = TypeVar("T")
_MESSAGES = {
    EndReason.DELETED: "it was deleted",
    EndReason.LIFETIME: "its lifetime is over",
    EndReason.IDLE: "nobody used it for its idle_seconds",
    EndReason.PROJECT: "its project was removed",
    EndReason.WORKER_STOPPED: "the worker of its node was stopped",
    EndReason.NODE_LOST: "its node could not renew its lease",
}


def end_of(reason: EndReason, message: str | None = None) -> SandboxEnd:
    """Return an end with the message of its reason, unless another one says more."""
    return SandboxEnd(reason=reason, message=message or _MESSAGES.get(reason, str(reason)))


class HeldSandbox:
    """One sandbox on this node, from its claim to the report of its end."""

    def __init__(self, assignment: SandboxAssignment, requested_at: float) -> None:
        """`requested_at` is the event loop's time before the request that was answered with the assignment."""
        self.sandbox: Sandbox = assignment.sandbox
        self.key: SandboxLease = assignment.lease
        self.lease = Lease(requested_at, assignment.lease_seconds)
        #: How it is to end, as soon as that is known.
        self.end: SandboxEnd | None = None
        #: Whether its machine has taken commands under this lease.
        self.has_run = False
        #: Whether all of it is kept in a frozen machine, so that it is paused whatever happens to this process.
        self.is_paused = False
        self._ending = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._expires_at: datetime | None = None
        self.obey(assignment.order, requested_at)

    @property
    def holder(self) -> str:
        """The name that its capacity is held under."""
        return str(self.key)

    @property
    def ids(self) -> dict[str, object]:
        """Fields for the log."""
        return {"sandbox": self.key.sandbox_id, "fence": self.key.fence}

    def obey(self, order: SandboxOrder, requested_at: float) -> None:
        """Take what the control plane wants, in answer to a request of that time of the loop."""
        if order.end is not None:
            self.finish(end_of(order.end))
        if self.end is not None or order.expires_at == self._expires_at:
            return  # a database whose clock was set changes no deadline
        self._expires_at = order.expires_at
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(requested_at + order.lifetime_seconds, self.finish, end_of(EndReason.LIFETIME))

    def finish(self, end: SandboxEnd) -> None:
        """Have it end so; the first end stays."""
        if self.end is None:
            self.end = end
            log.info("sandbox_ending", **self.ids, reason=end.reason, message=end.message)
        self._ending.set()
        if self._timer is not None:
            self._timer.cancel()

    async def wait_ending(self) -> SandboxEnd:
        """Wait until it is to end."""
        await self._ending.wait()
        assert self.end is not None
        return self.end

    async def unless_ending(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`; None when the sandbox is to end first: `work` is cancelled then."""
        task, ending = asyncio.create_task(work), asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            ending.cancel()
            await asyncio.gather(task, ending, return_exceptions=True)

    def lose_lease(self) -> None:
        """Stop what is done under the lease: the control plane refused it."""
        if self.lease.is_open:
            log.warning("lease_lost", **self.ids)
        self.lease.lose("the control plane gave the sandbox up")
