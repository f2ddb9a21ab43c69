"""Which hypervisor is chosen, and why: over real probes where they can run, over cached choices elsewhere."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.model.errors import HostError, MissingTool
from belljar.model.image import Image
from belljar.node.machines import selector
from belljar.node.machines.selector import HypervisorSelector
from belljar.settings import Settings
from support.firecracker.building import build_fakes

pytestmark = pytest.mark.vm


@pytest.fixture(autouse=True)
def _no_settings_file(data_dir: Path) -> None:
    (data_dir / "belljar.toml").unlink()


@pytest.fixture
def shell(data_dir: Path) -> Image:
    return Images(data_dir).get("shell")


@pytest.fixture
def with_kvm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A device that opens, whatever this host has."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(selector, "KVM", device)
    return device


async def test_without_kvm_it_is_software_emulation(
    data_dir: Path, shell: Image, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selector, "KVM", tmp_path / "absent")
    choice = await HypervisorSelector(Settings(data_dir=data_dir)).choose(shell)
    assert (choice.hypervisor, choice.accelerator) == ("qemu", "tcg")
    assert choice.reason == "this host has no /dev/kvm"


@pytest.mark.root
async def test_a_kvm_that_may_not_be_opened_is_the_reason(
    data_dir: Path, shell: Image, with_kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selector.os, "access", lambda path, mode: path != with_kvm)
    choice = await HypervisorSelector(Settings(data_dir=data_dir)).choose(shell)
    assert choice.reason == "this user may not open /dev/kvm"


@pytest.mark.root
async def test_firecracker_is_chosen_when_it_boots_the_real_kernel(
    data_dir: Path, shell: Image, with_kvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.machines.probe._SECONDS", 60.0)  # emulation behind the fake is slow
    firecracker, jailer = build_fakes(tmp_path / "programs")
    settings = Settings(data_dir=data_dir, firecracker=str(firecracker), jailer=str(jailer))
    choice = await HypervisorSelector(settings).choose(shell)
    assert (choice.hypervisor, choice.accelerator) == ("firecracker", "kvm"), choice.reason
    assert "booted the image's kernel in" in choice.reason

    async def never(*_: object) -> None:
        raise AssertionError("a cached choice needs no probe")

    monkeypatch.setattr(selector, "probe", never)
    again = HypervisorSelector(settings)
    assert await again.choose(shell) == choice
    assert (await again.hypervisor(shell)).name == "firecracker"


@pytest.mark.root
async def test_a_firecracker_that_cannot_be_used_is_named_in_the_reason_and_qemu_tried(
    data_dir: Path, shell: Image, with_kvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.machines.probe._SECONDS", 0.01)
    firecracker, jailer = build_fakes(tmp_path / "programs", version="1.2.0")
    choice = await HypervisorSelector(
        Settings(data_dir=data_dir, firecracker=str(firecracker), jailer=str(jailer))
    ).choose(shell)
    assert (choice.hypervisor, choice.accelerator) == ("qemu", "tcg")
    assert "Firecracker 1.2.0 is too old" in choice.reason and "under qemu" in choice.reason


@pytest.mark.root
async def test_another_firecracker_is_probed_again(
    data_dir: Path, shell: Image, with_kvm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.machines.probe._SECONDS", 0.01)
    firecracker, jailer = build_fakes(tmp_path / "programs")
    settings = Settings(data_dir=data_dir, firecracker=str(firecracker), jailer=str(jailer))
    first = await HypervisorSelector(settings).choose(shell)
    assert (first.accelerator, first.provisional) == ("tcg", True)  # it was only too slow: probed again another day
    build_fakes(tmp_path / "programs", version="1.3.0")
    assert "1.3.0 is too old" in (await HypervisorSelector(settings).choose(shell)).reason


async def test_the_settings_decide_without_a_probe(data_dir: Path, shell: Image) -> None:
    for hypervisor, accelerator in (("qemu", "tcg"), ("qemu", "kvm"), ("auto", "tcg")):
        settings = Settings(data_dir=data_dir, hypervisor=hypervisor, accelerator=accelerator)
        choice = await HypervisorSelector(settings).choose(shell)
        assert (choice.hypervisor, choice.accelerator) == ("qemu", accelerator)
        assert choice.reason == "set in the settings"


async def test_firecracker_without_kvm_is_refused(data_dir: Path, shell: Image) -> None:
    settings = Settings(data_dir=data_dir, hypervisor="firecracker", accelerator="tcg")
    with pytest.raises(HostError, match="with KVM alone"):
        await HypervisorSelector(settings).choose(shell)


async def test_a_configured_firecracker_that_is_absent_is_an_error(data_dir: Path, shell: Image) -> None:
    settings = Settings(data_dir=data_dir, hypervisor="firecracker", firecracker="no-such-firecracker")
    with pytest.raises(MissingTool, match="no-such-firecracker not found"):
        await HypervisorSelector(settings).hypervisor(shell)


async def test_an_image_for_another_architecture_is_refused(data_dir: Path, shell: Image) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    foreign = shell.model_copy(update={"manifest": shell.manifest.model_copy(update={"architecture": other})})
    with pytest.raises(HostError, match=f"is for {other}"):
        await HypervisorSelector(Settings(data_dir=data_dir)).choose(foreign)


async def test_a_cache_that_cannot_be_read_or_written_is_no_obstacle(
    data_dir: Path, shell: Image, with_kvm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("belljar.node.machines.probe._SECONDS", 0.01)
    (data_dir / "cache").write_text("no folder")
    settings = Settings(data_dir=data_dir, firecracker="no-such-firecracker")
    assert (await HypervisorSelector(settings).choose(shell)).hypervisor == "qemu"
