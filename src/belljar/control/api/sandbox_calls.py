"""A call to one sandbox: its record, its machine, and its commands by their process numbers in the guest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from belljar.control.api.authentication import end_error
from belljar.control.api.dependencies import ProjectDep, ServicesDep
from belljar.control.api.services import Services
from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import InvalidOption
from belljar.model.sandbox import Sandbox
from belljar.model.sandbox_errors import ProcessNotFound, StreamBroken
from belljar.model.sandbox_values import ProcessInfo

MAX_PATH_BYTES = 4095
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call to a running sandbox of the caller's project."""

    services: Services
    sandbox: Sandbox
    machine: SandboxMachine

    async def process(self, pid: int) -> ProcessInfo:
        """Return the newest command that has or had this process number in the guest. Raises ProcessNotFound."""
        found = [each for each in await self.machine.processes() if each.pid == pid]
        if not found:
            raise ProcessNotFound(
                f"the sandbox has no command with the pid {pid}, or has forgotten it; list them with GET "
                f"/v1/sandboxes/{self.sandbox.id}/processes"
            )
        return max(found, key=lambda each: each.id)


async def call_of(sandbox_id: str, services: ServicesDep, project: ProjectDep) -> Call:
    """Return the call. Raises NotFound, SandboxEnded, SandboxPaused, SandboxNotReady, SandboxUnreachable."""
    sandbox, machine = await services.sandboxes.machine(project, sandbox_id)
    return Call(services=services, sandbox=sandbox, machine=machine)


CallDep = Annotated[Call, Depends(call_of)]


async def watch_identity(identity: Identity, changes: Changes) -> None:
    """Raise the error that ends a WebSocket: its caller's key is not valid any more, or the server stops."""
    while not changes.stopping:
        if (error := end_error(identity, changes)) is not None:
            raise error
        await asyncio.sleep(_LOOK_SECONDS)
    raise StreamBroken("the server stops")


def guest_path(path: str, option: str = "path") -> str:
    """Return the absolute path in the guest; a relative one is below /work. Raises InvalidOption."""
    if "\0" in path:
        raise InvalidOption(f"{option} contains a NUL character, which no path has; remove it", option=option)
    absolute = path if path.startswith("/") else f"/work/{path}"
    try:
        size = len(absolute.encode(errors="surrogateescape"))
    except UnicodeEncodeError:
        raise InvalidOption(f"{option} has an unpaired surrogate; send valid Unicode", option=option) from None
    if size > MAX_PATH_BYTES:
        raise InvalidOption(f"{option} is over {MAX_PATH_BYTES} bytes", option=option, limit=MAX_PATH_BYTES)
    return absolute
