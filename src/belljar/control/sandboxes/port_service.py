"""Lets visitors in to the ports of sandboxes: tokens, public ports, and the machine behind them."""

from __future__ import annotations

from belljar.control.sandboxes.machines import SandboxMachines
from belljar.control.sandboxes.port_token import PortToken, PortVisit
from belljar.control.sandboxes.service import SandboxService
from belljar.control.store.port_tokens import SqlPortTokens
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import NotFound


class PortService:
    """The operations on the access to ports."""

    def __init__(self, store: SqlPortTokens, sandboxes: SandboxService, machines: SandboxMachines) -> None:
        self._store = store
        self._sandboxes = sandboxes
        self._machines = machines

    async def create_token(
        self, project: str, sandbox_id: str, port: int, lifetime_seconds: float | None
    ) -> tuple[PortToken, str]:
        """Make a token for a port; return it and its secret. Raises NotFound, SandboxEnded, Conflict."""
        sandbox = await self._sandboxes.get(project, sandbox_id)
        made = await self._store.add(project, sandbox.id, port, lifetime_seconds)
        if made is None:
            self._machines.get(await self._sandboxes.get(project, sandbox_id))  # raises SandboxEnded
            raise NotFound(f"the sandbox {sandbox_id} is gone")
        return made

    async def tokens(self, project: str, sandbox_id: str, port: int) -> list[PortToken]:
        """Return the valid tokens of a port, the newest first. Raises NotFound."""
        sandbox = await self._sandboxes.get(project, sandbox_id)
        return await self._store.list(project, sandbox.id, port)

    async def revoke_token(self, project: str, sandbox_id: str, port: int, token_id: str) -> None:
        """Revoke a token; connections that it opened end soon. Raises NotFound."""
        if not await self._store.remove(project, sandbox_id, port, token_id):
            raise NotFound(f"the port {port} of the sandbox has no token {token_id[:80]!r}; list its tokens")

    async def visit(self, sandbox_id: str, port: int, secret: str | None) -> PortVisit | None:
        """Return the visit that the token, or nothing, allows; None when it is not allowed."""
        return await self._store.visit(sandbox_id, port, secret)

    def machine(self, visit: PortVisit) -> SandboxMachine:
        """Return the machine of a sandbox that is visited.

        Raises SandboxEnded, SandboxPaused, SandboxNotReady, SandboxUnreachable.
        """
        return self._machines.get(visit.sandbox)
