"""Images with a kernel of the user's: Debian's own as a bzImage and as an ELF boots; the faults of others are named."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.build import build_image
from belljar.images.catalog import Images
from belljar.images.kernel_file import extract_elf
from belljar.images.kernel_source import UserKernel, parse_kernel_choice
from belljar.model.errors import ImageBuildError, InvalidOption
from belljar.model.image import Image
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.node.machines.trial_boot import try_boot
from belljar.settings import Settings
from support.kernels import DebianKernel, debian_kernel, elf
from support.silent_progress import SilentProgress

BOOT_SECONDS = 120


@pytest.fixture(scope="session")
def debian(own_images: Path, tmp_path_factory: pytest.TempPathFactory) -> DebianKernel:
    return debian_kernel(own_images, tmp_path_factory.mktemp("debian-kernel"))


async def build(image_dir: Path, kernel: UserKernel, *, boots: int = 1) -> Image:
    settings = Settings(data_dir=image_dir, boot_timeout_seconds=BOOT_SECONDS)

    async def trial_boot(image: Image) -> None:
        await try_boot(QemuHypervisor(settings, "tcg"), image, 128, BOOT_SECONDS, boots=boots)

    return await build_image("shell", settings, SilentProgress(), kernel=kernel, trial_boot=trial_boot)


def test_the_choice_is_a_name_or_a_path(tmp_path: Path) -> None:
    assert parse_kernel_choice("backports", None) == "backports"
    assert parse_kernel_choice("./stock", tmp_path) == UserKernel(Path("stock"), tmp_path)
    with pytest.raises(InvalidOption, match="there is no kernel 'stok': give stock, backports, custom, or the path"):
        parse_kernel_choice("stok", None)
    with pytest.raises(InvalidOption, match="--modules belongs to a kernel's file, not to --kernel custom"):
        parse_kernel_choice("custom", tmp_path)


async def test_what_is_no_kernel_is_reported_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n" * 1000)
    with pytest.raises(InvalidOption, match="is text, not a bzImage") as refused:
        await build(tmp_path / "data", UserKernel(tmp_path / "text"))
    assert refused.value.details["option"] == "kernel"
    assert not (tmp_path / "data").exists()


async def test_a_kernel_for_another_processor_or_without_drivers_registers_nothing(
    image_dir: Path, tmp_path: Path
) -> None:
    before = Images(image_dir).get("shell").manifest
    for content, message in (
        (elf(machine=183), "is for aarch64; this host needs a kernel for x86_64"),
        (elf()[:-9], "is cut off"),
        (
            elf(b"Linux version 6.1.0-test (x)\0"),
            "lacks what machines need: .*CONFIG_VIRTIO_BLK .*--modules /lib/modules/6",
        ),
    ):
        (tmp_path / "vmlinux").write_bytes(content)
        with pytest.raises(InvalidOption, match=message):
            await build(image_dir, UserKernel(tmp_path / "vmlinux"))
    assert Images(image_dir).get("shell").manifest == before


@pytest.mark.vm
async def test_debians_kernel_boots_as_a_bzimage_and_runs_a_job(image_dir: Path, debian: DebianKernel) -> None:
    with pytest.raises(InvalidOption, match=r"CONFIG_EROFS_FS .*give its modules with --modules"):
        await build(image_dir, UserKernel(debian.vmlinuz))
    image = await build(image_dir, UserKernel(debian.vmlinuz, debian.modules.parent))
    origin = image.manifest.kernel_origin
    assert origin is not None
    assert (origin.source, origin.version) == ("file", debian.release)
    assert origin.file_sha256 == hashlib.sha256(debian.vmlinuz.read_bytes()).hexdigest()
    command = [sys.executable, "-m", "belljar", "run", "-", "--language", "shell", "--image", "shell"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, "--data-dir", str(image_dir)],
        input=b"uname -r",
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == f"{debian.release}\n"


@pytest.mark.vm
async def test_debians_kernel_boots_as_an_elf_and_the_same_file_is_not_tried_again(
    image_dir: Path, debian: DebianKernel, tmp_path: Path
) -> None:
    (tmp_path / "vmlinux").write_bytes(
        await extract_elf(debian.vmlinuz.read_bytes(), "vmlinuz", tmp_path, tmp_path / "log")
    )
    kernel = UserKernel(tmp_path / "vmlinux", debian.modules)
    image = await build(image_dir, kernel, boots=2)
    assert image.kernel.read_bytes().startswith(b"\x7fELF")

    async def never(_: Image) -> None:
        raise AssertionError

    again = await build_image("shell", Settings(data_dir=image_dir), SilentProgress(), kernel=kernel, trial_boot=never)
    assert again.manifest == image.manifest


@pytest.fixture
def claims(debian: DebianKernel) -> Iterator[Path]:
    """A configuration beside the kernel that says, wrongly, that everything is built in."""
    beside = debian.vmlinuz.with_name(f"config-{debian.release}")
    beside.write_text(debian.configuration.replace("=m\n", "=y\n"))
    yield beside
    beside.unlink()


@pytest.mark.vm
@pytest.mark.usefixtures("claims")
async def test_a_kernel_that_finds_no_disk_is_reported_by_its_console(image_dir: Path, debian: DebianKernel) -> None:
    before = Images(image_dir).get("shell").manifest
    with pytest.raises(ImageBuildError) as failed:
        await build(image_dir, UserKernel(debian.vmlinuz))
    message = failed.value.message
    assert "does not boot under qemu" in message and "it found no disk: CONFIG_VIRTIO_BLK" in message
    assert "belljar-agent: /dev/vda: No such file or directory" in message
    assert Images(image_dir).get("shell").manifest == before


@pytest.mark.vm
async def test_a_kernel_that_panics_is_reported_by_its_panic(
    image_dir: Path, debian: DebianKernel, tmp_path: Path
) -> None:
    kernel = await extract_elf(debian.vmlinuz.read_bytes(), "vmlinuz", tmp_path, tmp_path / "log")
    without_init = kernel.replace(b"/init\0", b"/xnit\0")
    assert without_init != kernel
    (tmp_path / "vmlinux").write_bytes(without_init)
    with pytest.raises(ImageBuildError, match="the guest's kernel panicked: VFS: Unable to mount root fs") as failed:
        await build(image_dir, UserKernel(tmp_path / "vmlinux", debian.modules))
    assert "CONFIG_BLK_DEV_INITRD" in failed.value.message and "its console: " in failed.value.message
