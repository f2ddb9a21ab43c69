"""A provisioner over real snapshots of the image python, for tests of clones."""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from belljar.model.image import Image
from belljar.node.guest.command import Command
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.worker.plan import DEFAULT_ENV
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from support.conversation import Collector


@dataclass
class Lab:
    settings: Settings
    image: Image
    hypervisor: QemuHypervisor
    warm_up_steps: WarmUp
    provisioner: MachineProvisioner
    folder: Path
    #: Snapshots that tests of this file have made.
    frozen: Path
    packing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def snapshots(self) -> Snapshots:
        assert self.provisioner.snapshots is not None
        return self.provisioner.snapshots

    def with_pool(self, size: int) -> MachineProvisioner:
        """Return another provisioner of the same snapshots, with a pool of that many clones."""
        pool = WarmPool(fixed_size=size, max_size=size, memory_mb=1000, has_spare_processor=lambda making: making < 2)
        return MachineProvisioner(self.snapshots, pool)

    def spec(self, script: Path | None, *, disk_mb: int | None = None) -> MachineSpec:
        shape = Shape(vcpus=1, memory_mb=128, disk_mb=disk_mb)
        return MachineSpec(image=self.image, shape=shape, script_disk=script)

    def key(self, *, disk_mb: int | None = None) -> str:
        return self.snapshots.key(
            self.hypervisor, self.image, self.spec(None, disk_mb=disk_mb).shape, self.warm_up_steps
        )

    async def make(self, *, disk_mb: int | None = None) -> Path:
        """Have a snapshot: the first test of a kind freezes a machine, the others copy its files."""
        folder = self.snapshots.folder / self.key(disk_mb=disk_mb)
        first = self.frozen / folder.name
        if first.exists():
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            await asyncio.to_thread(copy, first, folder)
        else:
            assert await self.provisioner.make_snapshot(
                self.hypervisor, self.spec(None, disk_mb=disk_mb), self.warm_up_steps
            )
            await asyncio.to_thread(copy, folder, first)
        assert self.snapshots.find(folder.name) == folder
        return folder

    async def script(self, text: str) -> Path:
        disk = self.folder / f"{abs(hash(text))}.erofs"
        async with self.packing:
            if not disk.exists():
                tree = self.folder / f"{disk.name}.d"
                tree.mkdir()
                (tree / "main.py").write_text(text)
                await pack_tree(tree, disk)
        return disk

    async def run(self, text: str, *, disk_mb: int | None = None) -> tuple[ProvisionedMachine, Collector]:
        """Run a Python script in a machine of the provisioner."""
        spec = self.spec(await self.script(text), disk_mb=disk_mb)
        async with self.provisioner.machine(self.hypervisor, spec, self.warm_up_steps, 60) as ready:
            return ready, await converse(ready)


def copy(source: Path, target: Path) -> None:
    """Copy a snapshot with its times, which tell whether it is whole."""
    subprocess.run(["cp", "--archive", "--sparse=always", source, target], check=True, timeout=60)


async def converse(ready: ProvisionedMachine) -> Collector:
    sink = Collector()
    command = Command(argv=["python3", "/work/main.py"], env=DEFAULT_ENV, prefork="python")
    async with asyncio.timeout(60):
        exited = await ready.connection.run(command, b"", sink, lambda _: None)
    assert exited.exit_code == 0, sink.stderr
    return sink
