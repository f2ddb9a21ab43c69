"""The steps that bring one Firecracker process up: its files, its command line, its bounds."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from belljar.node.machines.deadlines import patience
from belljar.node.machines.firecracker.configuration import configuration
from belljar.node.machines.firecracker.confinement import jailed_command, wrapped_command
from belljar.node.machines.firecracker.folder import CONFIG, INITRAMFS, KERNEL, LOG, SCRATCH, SCRIPT, Folder, jails
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.firecracker.program import Programs
from belljar.node.machines.host.cgroup import Bounds, Group
from belljar.node.machines.host.faults import devnull
from belljar.node.machines.host.jail import entering_environment, joining, kvm_node, spawn
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, Console, MachineSpec
from belljar.node.machines.qemu.scratch import make_filesystem
from belljar.node.machines.steps import Steps
from belljar.settings import Settings

#: Firecracker's own memory beside its guest's is under 5 MiB; the rest is page cache that is charged to it.
_OWN_MEMORY_MB = 128
_OWN_ADDRESSES_MB = 1024
_OWN_PROCESSES = 64
_OWN_CPUS = 0.5
#: What a process may write to files that hold neither a disk nor memory.
_OWN_FILES_MB = 16
#: At the level Warning each boot has twenty lines about ports that nothing is behind, which read like failures.
_QUIET = ("--log-path", LOG, "--level", "Error", "--show-level")

M = TypeVar("M", bound=FirecrackerMachine)


@dataclass(kw_only=True, slots=True)
class Start:
    """One machine on its way up. What it makes is released by `held`."""

    settings: Settings
    programs: Programs
    spec: MachineSpec
    stack: AsyncExitStack
    folder: Folder
    group: Group
    machine_id: str
    #: The same in the jailer's letters.
    jail_id: str
    steps: Steps
    #: Firecracker's own arguments.
    arguments: tuple[str, ...] = ()
    #: Largest file that the process may write.
    file_mb: int = _OWN_FILES_MB

    def script_disk(self) -> int:
        """An empty script disk of the machine's own; returns a descriptor of it. Raises HostError, DiskFull."""
        descriptor = self.stack.enter_context(self.folder.created(SCRIPT, SCRIPT_DISK_BYTES))
        self.folder.give(SCRIPT, 0o400)
        return descriptor

    async def configure(self, *arguments: str) -> None:
        """Everything that a machine boots from, and the file that says so. Raises HostError, DiskFull, MissingTool."""
        self.folder.show(KERNEL, self.spec.image.kernel)
        self.folder.show(INITRAMFS, self.spec.image.initramfs)
        if self.spec.shape.disk_mb is not None:
            with self.folder.created(SCRATCH, self.spec.shape.disk_mb << 20):
                await make_filesystem(str(self.folder.path / SCRATCH))
                self.folder.give(SCRATCH, 0o600)
        self.folder.write(CONFIG, json.dumps(configuration(self.spec).file()).encode())
        self.arguments = ("--config-file", CONFIG, *arguments)

    async def spawn(self, kind: Callable[..., M]) -> M:
        """Start the process and make a machine of it. Raises HostError, MissingTool, OSError."""
        log = self.folder.pipe(LOG)
        self.stack.callback(os.close, log)
        self.steps.done("prepare")
        process = await self._process(self._command())
        machine = kind(
            self.machine_id,
            process,
            self.folder,
            log=log,
            console=Console(limit_bytes=self.settings.max_console_kb * 1024),
            phases=self.steps.phases,
            patience=patience(self.settings.boot_timeout_seconds),
        )
        self.stack.push_async_callback(machine.kill)
        self.steps.done("spawn")
        return machine

    def _command(self) -> list[str]:
        arguments = (*self.arguments, *_QUIET)
        if self.programs.jailer is not None:
            command = jailed_command(
                self.programs,
                self.folder,
                base=jails(self.settings),
                machine_id=self.jail_id,
                namespace=self.spec.slot.namespace if self.spec.slot is not None else None,
                file_bytes=max(self.file_mb, self.spec.shape.disk_mb or 0) << 20,
                arguments=arguments,
            )
        else:
            kvm = self.stack.enter_context(kvm_node(self.machine_id, None))
            command = wrapped_command(self.programs, self.folder, machine_id=self.jail_id, kvm=kvm, arguments=arguments)
        return [*joining(self.group), *command]

    async def _process(self, command: list[str]) -> asyncio.subprocess.Process:
        address_mb = None if self.group.folders else self.spec.shape.memory_mb + _OWN_ADDRESSES_MB
        return await spawn(
            command,
            env=entering_environment(address_mb and address_mb << 20),
            stdin=devnull(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at the terminal is belljar's to handle
        )


def bounds(spec: MachineSpec) -> Bounds:
    """What one machine's processes may take of the host."""
    return Bounds(
        memory_bytes=(spec.shape.memory_mb + _OWN_MEMORY_MB) << 20,
        cpus=spec.shape.vcpus + _OWN_CPUS,
        processes=spec.shape.vcpus + _OWN_PROCESSES,
        weight=spec.weight,
    )
