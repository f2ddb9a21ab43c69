"""Snapshots for the tests of this folder: frozen once, then copied."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.worker.warm_ups import WarmUps
from belljar.settings import Settings
from support.clone_lab import Lab
from support.running import descendants, name_of


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture
async def lab(built_images: Path, frozen: Path, tmp_path: Path) -> AsyncIterator[Lab]:
    settings = Settings(data_dir=tmp_path / "data")
    image = Images(built_images).get("python")
    warm_up_steps = await WarmUps(settings).of(image)
    hypervisor = QemuHypervisor(settings, "tcg")
    yield Lab(settings, image, hypervisor, warm_up_steps, MachineProvisioner(Snapshots(settings)), tmp_path, frozen)
    hypervisor.release_snapshot(Snapshots(settings).folder / "none")
    assert [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)] == []
    scratch = tmp_path / "data" / "run" / "scratch"
    assert not scratch.exists() or list(scratch.iterdir()) == []
