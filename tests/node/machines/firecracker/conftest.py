"""Machines of the real driver: over the fake everywhere, over the real executables where they are on PATH."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.model.image import Image, Manifest, Part
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.settings import Settings
from support.firecracker.building import build_fakes
from support.firecracker.leftovers import left_behind
from support.firecracker.tiny_guest import RESET, tiny_guest


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fakes for firecracker and jailer, without faults."""
    return build_fakes(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def settings(data_dir: Path, fakes: tuple[Path, Path]) -> Settings:
    """Settings of a data folder with images, and the fakes."""
    firecracker, jailer = fakes
    return Settings(data_dir=data_dir, hypervisor="firecracker", firecracker=str(firecracker), jailer=str(jailer))


@pytest.fixture
def hypervisor(settings: Settings) -> Iterator[FirecrackerHypervisor]:
    """The driver over the fakes; whatever it started is gone at the end."""
    yield FirecrackerHypervisor(settings)
    assert left_behind(settings) == []


@pytest.fixture
def shell(settings: Settings) -> Image:
    return Images(settings.data_dir).get("shell")


@pytest.fixture
def real_settings(tmp_path: Path) -> Settings:
    """Settings for the real executables; skips where they are not on PATH."""
    if shutil.which("firecracker") is None or shutil.which("jailer") is None:
        pytest.skip("firecracker and jailer are not on PATH")
    if not Path("/dev/kvm").exists():
        pytest.skip("this host has no /dev/kvm")
    if platform.machine() != "x86_64":
        pytest.skip("the tiny guest is for x86-64")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    return Settings(data_dir=data_dir)


@pytest.fixture(params=["jailer", "bubblewrap"])
def real(real_settings: Settings, request: pytest.FixtureRequest) -> Iterator[FirecrackerHypervisor]:
    """The driver over the real executables, in either jail; whatever it started is gone at the end."""
    yield FirecrackerHypervisor(real_settings, jailed=request.param == "jailer")
    assert left_behind(real_settings) == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system, for root."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=True, timeout=30)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True, timeout=30)


@pytest.fixture
def tiny(tmp_path: Path) -> TinyImages:
    return TinyImages(tmp_path)


class TinyImages:
    """Images whose kernel is a tiny guest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def image(self, text: bytes = b"hello\n", after: bytes | None = RESET) -> Image:
        kernel, disk = self._folder / "tiny-kernel", self._folder / "tiny-disk"
        kernel.write_bytes(tiny_guest(text, after))
        disk.write_bytes(bytes(4096))
        part = Part(sha256="0" * 64, size_bytes=0, origin="a test")
        manifest = Manifest(
            name="tiny",
            architecture=platform.machine(),
            digest="0" * 64,
            kernel=part,
            initramfs=part,
            root=part,
            languages=(),
        )
        return Image(manifest=manifest, kernel=kernel, initramfs=disk, root=disk)
