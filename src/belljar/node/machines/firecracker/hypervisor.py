"""Starts Firecracker machines: booted, booted to be frozen, or cloned from what was frozen.

A start is a list of steps, each timed. A boot makes no request at all: the whole machine is a file that Firecracker
reads by itself, and there is no API to talk to later. A clone makes one request, a template none before it is frozen.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from belljar.model.errors import HostError
from belljar.node.machines.deadlines import patience
from belljar.node.machines.firecracker import frozen
from belljar.node.machines.firecracker.bodies import SnapshotLoad
from belljar.node.machines.firecracker.configuration import FORMAT
from belljar.node.machines.firecracker.folder import API, MEMORY, ROOT, SCRATCH, SCRIPT, STATE, jails, machine_folder
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.firecracker.program import Programs, find_programs
from belljar.node.machines.firecracker.sparse import copy_sparse
from belljar.node.machines.firecracker.start import Start, bounds
from belljar.node.machines.host.cgroup import find_hierarchies, machine_group
from belljar.node.machines.host.jail import machine_uid
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.shielded_stack import shielded_exit_stack, uninterrupted
from belljar.node.machines.host.tap import dead_end_slot
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Clone, Machine, MachineSpec, Template
from belljar.node.machines.steps import Steps
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

#: A clone's agent listens already; this is for a host under load.
_CONNECT_SECONDS = 10.0
_START = "start a machine"
_NO_NETWORK = "a machine with a network needs Firecracker's jailer: run belljar as root"


class FirecrackerHypervisor:
    """The protocol's Hypervisor. Raises MissingTool or HostError when made where it cannot run."""

    name = "firecracker"
    accelerator = "kvm"

    def __init__(self, settings: Settings, *, jailed: bool | None = None) -> None:
        """`jailed`: whether by Firecracker's jailer; by default when belljar is root, which the jailer needs."""
        self._jailed = os.geteuid() == 0 if jailed is None else jailed
        self._settings = settings
        self._programs: Programs = find_programs(settings, jailed=self._jailed)
        self._hierarchies = find_hierarchies()
        self._owner = owner_name(os.getpid())

    @property
    def version(self) -> str:
        """Firecracker's version, such as 1.16.1."""
        return self._programs.version

    @property
    def identity(self) -> str:
        """What changes whenever snapshots stop being good."""
        return f"{self._programs.identity}:{FORMAT}"

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[Machine]:
        """Boot a machine; it has begun to when the block begins. Raises MissingTool, HostError, DiskFull."""
        if spec.script_disk is None:
            raise ValueError("a machine that boots is given its script's disk at once")
        async with self._started(spec) as start:
            with host_errors(_START):
                start.folder.show(SCRIPT, spec.script_disk)
                await start.configure("--no-api")
                machine = await start.spawn(FirecrackerMachine)
                machine.connect_later()
            yield machine

    @asynccontextmanager
    async def template(self, spec: MachineSpec, folder: Path) -> AsyncIterator[Template]:
        """Boot a machine whose state can be frozen into `folder`. Raises MissingTool, HostError, DiskFull."""
        async with AsyncExitStack() as place, self._started(await self._plugged(spec, place)) as start:
            with host_errors(_START):
                script = start.script_disk()
                await start.configure("--api-sock", API)
                start.file_mb += spec.shape.memory_mb
                machine = await start.spawn(frozen.FirecrackerTemplate)
                machine.gives_scripts_to(script, start.group)
                machine.freezes_into(folder, start.spec)
                machine.connect_later()
            yield machine

    @asynccontextmanager
    async def clone(self, spec: MachineSpec, folder: Path) -> AsyncIterator[Clone]:
        """Go on where a template was frozen. Raises MissingTool, HostError, DiskFull, MachineError."""
        loading = frozen.loading(folder, spec)
        async with self._started(spec) as start:
            with host_errors("clone a machine"):
                machine = await self._restored(start, spec, folder, loading)
            yield machine

    async def _restored(
        self, start: Start, spec: MachineSpec, folder: Path, loading: SnapshotLoad
    ) -> frozen.FirecrackerClone:
        start.folder.show(STATE, folder / STATE)
        start.folder.show(MEMORY, folder / MEMORY)
        script = start.script_disk()
        if spec.shape.disk_mb is not None:
            await uninterrupted(in_thread(copy_sparse, folder / SCRATCH, start.folder.path / SCRATCH))
            start.folder.give(SCRATCH, 0o600)
        start.arguments = ("--api-sock", API)
        machine = await start.spawn(frozen.FirecrackerClone)
        machine.gives_scripts_to(script, start.group)
        async with machine.api() as api:
            start.steps.done("socket")
            with frozen.refusals():
                await api.load_snapshot(loading)
        start.steps.done("load")
        await machine.connect(_CONNECT_SECONDS * patience(self._settings.boot_timeout_seconds))
        start.steps.done("connect")
        return machine

    async def _plugged(self, spec: MachineSpec, stack: AsyncExitStack) -> MachineSpec:
        """A template with a network has a device that leads nowhere; each of its clones is given its own slot's."""
        if not spec.shape.network or spec.slot is not None:
            return spec
        if not self._jailed:
            raise HostError(_NO_NETWORK)
        return replace(spec, slot=await dead_end_slot(stack))

    def forget(self, folder: Path) -> None:
        """Nothing of a snapshot is kept but its folder."""

    @asynccontextmanager
    async def _started(self, spec: MachineSpec) -> AsyncIterator[Start]:
        """What every machine has, made before its process and gone after it."""
        async with shielded_exit_stack() as stack:
            with host_errors(_START):
                start = await self._prepare(spec, stack)
            yield start

    async def _prepare(self, spec: MachineSpec, stack: AsyncExitStack) -> Start:
        if spec.slot is not None and not self._jailed:
            raise HostError(_NO_NETWORK)
        token, steps = secrets.token_hex(6), Steps()
        uid = stack.enter_context(machine_uid(self._settings)) if self._jailed else None
        group = await stack.enter_async_context(
            machine_group(self._hierarchies, f"{self._owner}.{token}", bounds(spec))
        )
        # The jailer wants letters, digits and dashes; what follows the last dash is not the owner's.
        jail_id = f"{self._owner}-{token}"
        folder = await stack.enter_async_context(
            machine_folder(jails(self._settings), self._programs.firecracker.name, jail_id, uid)
        )
        folder.show(ROOT, spec.image.root)
        return Start(
            settings=self._settings,
            programs=self._programs,
            spec=spec,
            stack=stack,
            folder=folder,
            group=group,
            machine_id=f"{self._owner}.{token}",
            jail_id=jail_id,
            steps=steps,
        )
