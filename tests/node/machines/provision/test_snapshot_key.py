"""What decides which snapshot a job finds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

from belljar.node.guest.command import Command
from belljar.node.machines.protocol import Hypervisor, Shape
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.settings import Settings
from support.registered_images import register

HYPERVISOR = cast("Hypervisor", SimpleNamespace(name="qemu", accelerator="tcg", identity="qemu 7.2"))


def test_the_order_of_variables_does_not_matter(tmp_path: Path) -> None:
    # `belljar image build` makes a snapshot of the recipe's manifest, jobs look for that of the manifest in its file.
    snapshots, image = Snapshots(Settings(data_dir=tmp_path)), register(tmp_path)

    def key(env: dict[str, str]) -> str:
        command = Command(argv=["python3"], env=env, cwd="/", max_processes=16)
        warm_up = WarmUp(disk=Path("disk"), preload_commands=(command,))
        return snapshots.key(HYPERVISOR, image, Shape(vcpus=1, memory_mb=128), warm_up)

    assert key({"A": "1", "B": "2"}) == key({"B": "2", "A": "1"})
    assert key({"A": "1"}) != key({"A": "2"})
