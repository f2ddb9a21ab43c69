"""The steps of starting one Firecracker process: its files, its command line, its limits."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from belljar.node.machines.deadlines import deadline_factor
from belljar.node.machines.disks import ScriptDisk, make_filesystem
from belljar.node.machines.firecracker.configuration import configuration
from belljar.node.machines.firecracker.confinement import jailed_command, wrapped_command
from belljar.node.machines.firecracker.folder import CONFIG, INITRAMFS, KERNEL, LOG, SCRATCH, SCRIPT, Folder
from belljar.node.machines.firecracker.machine import FirecrackerMachine, FirecrackerProcess
from belljar.node.machines.firecracker.program import Programs
from belljar.node.machines.host.cgroup import Bounds, Group
from belljar.node.machines.host.descriptors import devnull
from belljar.node.machines.host.jail import cgroup_join_command, kvm_node, limits_environment, spawn
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, Console, MachineSpec
from belljar.node.machines.timings import StepTimings
from belljar.settings import Settings

#: Firecracker's own memory beside its guest's is under 5 MiB; the rest is page cache that the cgroup charges to it.
_OWN_MEMORY_MB = 128
_OWN_ADDRESSES_MB = 1024
_OWN_PROCESSES = 64
_OWN_CPUS = 0.5
#: Limit of a file that holds neither a disk nor memory.
_OWN_FILES_MB = 16
#: At the level Warning each boot logs twenty lines about absent ports, which read like failures.
_QUIET = ("--log-path", LOG, "--level", "Error", "--show-level")

M = TypeVar("M", bound=FirecrackerMachine)


@dataclass(kw_only=True, slots=True)
class Start:
    """The start of one machine. `stack` releases everything that it makes."""

    settings: Settings
    programs: Programs
    spec: MachineSpec
    stack: AsyncExitStack
    folder: Folder
    group: Group
    machine_id: str
    #: The machine's id in characters that the jailer accepts.
    jail_id: str
    timings: StepTimings
    #: Firecracker's own arguments.
    arguments: tuple[str, ...] = ()
    #: Size limit of each file that the process writes.
    file_mb: int = _OWN_FILES_MB

    def make_script_disk(self) -> ScriptDisk:
        """Make an empty script disk in the machine's folder. Raises HostError, DiskFull."""
        descriptor = self.stack.enter_context(self.folder.created(SCRIPT, SCRIPT_DISK_BYTES))
        self.folder.give(SCRIPT, 0o400)
        return ScriptDisk(descriptor)

    async def configure(self, *arguments: str) -> None:
        """Provide everything that a machine boots from, and its configuration file, with more `arguments`.

        Raises HostError, DiskFull, MissingTool.
        """
        self.folder.show(KERNEL, self.spec.image.kernel)
        self.folder.show(INITRAMFS, self.spec.image.initramfs)
        if self.spec.shape.disk_mb is not None:
            with self.folder.created(SCRATCH, self.spec.shape.disk_mb << 20):
                await make_filesystem(str(self.folder.path / SCRATCH))
                self.folder.give(SCRATCH, 0o600)
        self.folder.write(CONFIG, json.dumps(configuration(self.spec).file()).encode())
        self.arguments = ("--config-file", CONFIG, *arguments)

    async def spawn(self, make: Callable[[FirecrackerProcess], M]) -> M:
        """Spawn the process and return `make` of it. Raises HostError, MissingTool, OSError."""
        log = self.folder.pipe(LOG)
        self.stack.callback(os.close, log)
        self.timings.record("prepare")
        process = await self._spawn_process(self._command())
        machine = make(
            FirecrackerProcess(
                machine_id=self.machine_id,
                process=process,
                folder=self.folder,
                group=self.group,
                log=log,
                console=Console(limit_bytes=self.settings.max_console_kb * 1024),
                phases=self.timings.phases,
                deadline_factor=deadline_factor(self.settings.boot_timeout_seconds),
            )
        )
        self.stack.push_async_callback(machine.kill)
        self.timings.record("spawn")
        return machine

    def _command(self) -> list[str]:
        arguments = (*self.arguments, *_QUIET)
        if self.programs.jailer is not None:
            command = jailed_command(
                self.programs,
                self.folder,
                base=self.settings.paths.jails,
                machine_id=self.jail_id,
                namespace=self.spec.slot.namespace if self.spec.slot is not None else None,
                file_bytes=max(self.file_mb, self.spec.shape.disk_mb or 0) << 20,
                arguments=arguments,
            )
        else:
            kvm = self.stack.enter_context(kvm_node(self.machine_id, None))
            command = wrapped_command(self.programs, self.folder, machine_id=self.jail_id, kvm=kvm, arguments=arguments)
        return [*cgroup_join_command(self.group), *command]

    async def _spawn_process(self, command: list[str]) -> asyncio.subprocess.Process:
        address_mb = None if self.group.folders else self.spec.shape.memory_mb + _OWN_ADDRESSES_MB
        return await spawn(
            command,
            env=limits_environment(address_mb and address_mb << 20),
            stdin=devnull(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # belljar handles a Ctrl-C at the terminal itself
        )


def bounds(spec: MachineSpec) -> Bounds:
    """Return the limits of one machine's processes."""
    return Bounds(
        memory_bytes=(spec.shape.memory_mb + _OWN_MEMORY_MB) << 20,
        cpus=spec.shape.vcpus + _OWN_CPUS,
        processes=spec.shape.vcpus + _OWN_PROCESSES,
        weight=spec.weight,
    )
