"""A sandbox whose machine runs here: the machine, its session, and what callers use of it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

from belljar.link.sandboxes import SandboxStart
from belljar.node.guest.session import Session
from belljar.node.sandboxes.machine import HeldMachine
from belljar.node.sandboxes.machine_start import StartedMachine
from belljar.node.worker.flow_reports import FlowReports


@dataclass(kw_only=True, slots=True)
class RunningSandbox:
    """Belongs to the stack of its holder, which closes `sessions`."""

    started: StartedMachine
    session: Session
    machine: HeldMachine
    #: What the control plane was told of its start.
    report: SandboxStart
    flow_reports: FlowReports
    #: Owns the session.
    sessions: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def continue_in(self, opening: AbstractAsyncContextManager[Session]) -> None:
        """Go on in a new session of the same machine, instead of the suspended one. Raises as `opening` does."""
        await self.sessions.aclose()
        self.session = await self.sessions.enter_async_context(opening)
        self.machine.attach(self.session)
