"""A node whose machines are processes of the agent: it claims sandboxes over the real link, and holds them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from belljar.images.agent_binary import agent_binary
from belljar.link.errors import LeaseLost
from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import SandboxAssignment, SandboxLease, SandboxLink, SandboxStart
from belljar.model.errors import BelljarError
from belljar.model.job import MachineInfo, Timings
from belljar.model.sandbox import EndReason, FrozenState, ResumeProblem, SandboxEnd
from belljar.model.sandbox_errors import SandboxEnded
from belljar.model.sandbox_values import GuestUser
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.session import SessionRequest
from belljar.node.sandboxes.freezes import Freeze
from belljar.node.sandboxes.machine import HeldMachine
from belljar.node.sandboxes.process import MachineSize
from belljar.node.sandboxes.process_table import CommandDefaults

_MACHINE = MachineInfo(source="boot", hypervisor="process", accelerator="none")


class AgentNode:
    """The node. `folder` is the working folder of every command."""

    def __init__(self, link: SandboxLink, folder: Path) -> None:
        self._link = link
        self.folder = folder
        self.identity = NodeIdentity("node", "incarnation")
        #: What is held, with the agent's process.
        self.machines: dict[str, tuple[HeldMachine, asyncio.subprocess.Process]] = {}
        #: What a freeze fails with, and a resume.
        self.freeze_error: BelljarError | None = None
        self.resume_problem: ResumeProblem | None = None
        #: Those that are paused wait for the lease that resumes them; their agents run on.
        self._paused: dict[str, asyncio.Future[SandboxLease]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AgentNode]:
        """Claim and hold sandboxes while the block runs."""
        # No TaskGroup: a fixture's set-up and tear-down are different tasks.
        self._tasks.add(asyncio.create_task(self._claim()))
        try:
            yield self
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _claim(self) -> None:
        request = ClaimRequest(vcpus=64, memory_mb=1 << 20, disk_mb=1 << 20)
        while True:
            assignment = await self._link.claim_sandbox(self.identity, request, 1.0)
            if assignment is None:
                continue
            paused = self._paused.get(assignment.sandbox.id)
            if paused is None:
                self._tasks.add(asyncio.create_task(self._hold(assignment)))
            elif self.resume_problem is not None:
                await self._link.sandbox_not_resumed(assignment.lease, self.resume_problem)
            else:
                del self._paused[assignment.sandbox.id]
                paused.set_result(assignment.lease)

    async def _hold(self, assignment: SandboxAssignment) -> None:
        sandbox, lease = assignment.sandbox, assignment.lease
        async with agent_machine(self.folder, sandbox.spec.env) as (machine, process):
            self.machines[sandbox.id] = machine, process
            dying, sampling = asyncio.create_task(process.wait()), asyncio.create_task(machine.sample())
            end: SandboxEnd | None = None
            while end is None:
                start = SandboxStart(started_at=datetime.now(UTC), machine=_MACHINE, timings=Timings())
                await self._link.sandbox_running(lease, start, machine)
                end = await self._until_end_or_pause(lease, machine, dying)
                if end is None:
                    self._paused[sandbox.id] = asyncio.get_running_loop().create_future()
                    lease = await self._paused[sandbox.id]
            dying.cancel()
            sampling.cancel()
            await machine.close(SandboxEnded(end.message, reason=end.reason.value))
            with contextlib.suppress(LeaseLost):
                await self._link.put_sandbox_usage(lease, await machine.usage_series())
                await self._link.sandbox_ended(lease, end)
            del self.machines[sandbox.id]

    async def _until_end_or_pause(
        self, lease: SandboxLease, machine: HeldMachine, dying: asyncio.Task[int]
    ) -> SandboxEnd | None:
        """Hold a machine. Return why it ended; None when it was paused."""
        freeze = asyncio.create_task(machine.freezes.next())
        try:
            while not dying.done():
                orders = await self._link.wait_for_orders(self.identity, 0.2)
                order = orders.get(lease)
                if order is not None and order.end is not None:
                    return SandboxEnd(reason=order.end, message="ended by the test's node")
                if freeze.done():
                    if await self._freeze(lease, freeze.result()):
                        return None
                    freeze = asyncio.create_task(machine.freezes.next())
            return SandboxEnd(reason=EndReason.MACHINE_DIED, message="the agent's process was killed")
        finally:
            freeze.cancel()

    async def _freeze(self, lease: SandboxLease, wanted: Freeze) -> bool:
        """Report what a node does that freezes a machine. Return whether the sandbox is paused."""
        if self.freeze_error is not None:
            wanted.fail(self.freeze_error)
            return False
        state = FrozenState(id=wanted.request.id, node=self.identity.name, stored_bytes=5 << 20)
        if wanted.request.pause:
            await self._link.sandbox_pausing(lease)
            await self._link.sandbox_paused(lease, state)
        wanted.finish(state)
        return wanted.request.pause


@asynccontextmanager
async def agent_machine(
    folder: Path, env: dict[str, str]
) -> AsyncIterator[tuple[HeldMachine, asyncio.subprocess.Process]]:
    """Run the agent as a process, and yield its session as the link's `SandboxMachine`."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [str(agent_binary(os.uname().machine)), "--fd", str(theirs.fileno()), "/nonexistent"]
        process = await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()])
    reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
    connection = AgentConnection(reader, writer)
    user = GuestUser(uid=os.getuid(), gid=os.getgid())
    try:
        await connection.open(10)
        async with connection.open_session(SessionRequest(isolated=False)) as session:
            defaults = CommandDefaults(env={"PATH": "/usr/bin:/bin", **env}, cwd=str(folder), user=user)
            yield HeldMachine(session, defaults, MachineSize(1, 256)), process
    finally:
        writer.close()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
