"""The machines of running sandboxes that this process can reach."""

from __future__ import annotations

from belljar.link.sandboxes import SandboxLease, SandboxMachine
from belljar.model.sandbox import Sandbox, SandboxStatus
from belljar.model.sandbox_errors import SandboxEnded, SandboxNotReady, SandboxPaused, SandboxUnreachable


class SandboxMachines:
    """By sandbox, the machine that its node offers, and the lease that it is offered under."""

    def __init__(self) -> None:
        self._machines: dict[str, tuple[SandboxLease, SandboxMachine]] = {}

    def offer(self, lease: SandboxLease, machine: SandboxMachine) -> None:
        """Note a machine; it replaces that of an earlier lease."""
        self._machines[lease.sandbox_id] = lease, machine

    def withdraw(self, lease: SandboxLease) -> None:
        """Forget the machine of this lease, but not that of another one of the same sandbox."""
        known = self._machines.get(lease.sandbox_id)
        if known is not None and known[0] == lease:
            del self._machines[lease.sandbox_id]

    def drop(self, sandbox_id: str) -> None:
        """Forget whatever machine of the sandbox is known."""
        self._machines.pop(sandbox_id, None)

    def get(self, sandbox: Sandbox) -> SandboxMachine:
        """Return the machine of a sandbox as it was just read.

        Raises SandboxEnded, SandboxPaused, SandboxNotReady, SandboxUnreachable.
        """
        if sandbox.status.terminal:
            reason = sandbox.end.message if sandbox.end is not None else "it has ended"
            code = sandbox.end.reason if sandbox.end is not None else None
            raise SandboxEnded(f"the sandbox {sandbox.id} has ended: {reason}; create another one", reason=code)
        if sandbox.end_requested is not None:
            message = f"the sandbox {sandbox.id} is being ended ({sandbox.end_requested}); create another one"
            raise SandboxEnded(message, reason=sandbox.end_requested)
        if sandbox.status in (SandboxStatus.PAUSING, SandboxStatus.PAUSED):
            raise SandboxPaused(f"the sandbox {sandbox.id} is {sandbox.status}; resume it first")
        if sandbox.status is not SandboxStatus.RUNNING:
            raise SandboxNotReady(f"the sandbox {sandbox.id} is {sandbox.status}; wait until it is running")
        known = self._machines.get(sandbox.id)
        if known is None or known[0].fence != sandbox.fence:
            message = f"the node {sandbox.node} of the sandbox {sandbox.id} cannot be reached from this server"
            raise SandboxUnreachable(f"{message}; use the server that it is connected to, or try again")
        return known[1]
