"""What machines need of a kernel: found by its configuration or by its content, and reported by the option's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.custom_kernel import configuration
from belljar.images.kernel_elf import KernelElf
from belljar.images.kernel_modules import KernelModules
from belljar.images.kernel_needs import FIRECRACKER, NEEDS, QEMU, check_needs
from support.kernels import BANNER, NAMES, elf

ALL = "".join(f"CONFIG_{need.option}=y\n" for need in NEEDS)


def kernel(content: bytes = BANNER + NAMES, **changes: bytes) -> KernelElf:
    return KernelElf(elf(content, **changes), "vmlinux", "x86_64")  # type: ignore[arg-type]


def modules(folder: Path, *names: str, builtin: tuple[str, ...] = ()) -> KernelModules:
    (folder / "kernel").mkdir(parents=True)
    for name in names:
        (folder / f"kernel/{name}.ko").write_bytes(b"\x7fELF")
    (folder / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    return KernelModules(release="6.1.0-test", folder=folder)


def test_a_kernel_with_everything_built_in_lacks_nothing_by_either_evidence() -> None:
    for configured in (None, ALL):
        findings = check_needs(kernel(), configured, None)
        assert (findings.missing, findings.modules, findings.fatal()) == ((), (), [])


def test_our_own_configuration_meets_every_need() -> None:
    lacking = [phrase for _, phrase in check_needs(kernel(), configuration(), None).missing]
    assert lacking == []


@pytest.mark.parametrize("option", [need.option for need in NEEDS if need.hypervisor is None])
def test_an_option_that_is_off_is_named_by_the_configuration(option: str) -> None:
    for text in (f"# CONFIG_{option} is not set", ""):
        findings = check_needs(kernel(), ALL.replace(f"CONFIG_{option}=y", text), None)
        (phrase,) = findings.fatal()
        assert phrase.startswith(f"CONFIG_{option} (")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (b"virtio_blk", "VIRTIO_BLK"),
        (b"erofs", "EROFS_FS"),
        (b"overlayfs: x", "OVERLAY_FS"),
        (b"devtmpfs", "DEVTMPFS"),
        (b"oom.group", "MEMCG"),
        (b"pid_for_children", "PID_NS"),
    ],
)
def test_an_option_that_is_off_is_named_by_the_content(name: bytes, option: str) -> None:
    (phrase,) = check_needs(kernel(BANNER + NAMES.replace(name, b"x")), None, None).fatal()
    assert phrase.startswith(f"CONFIG_{option} (")


def test_modules_are_loaded_where_the_kernel_has_them_as_modules(tmp_path: Path) -> None:
    configured = ALL.replace("CONFIG_EROFS_FS=y", "CONFIG_EROFS_FS=m").replace("CONFIG_EXT4_FS=y", "CONFIG_EXT4_FS=m")
    assert check_needs(kernel(), configured, modules(tmp_path, "erofs", "ext4", "overlay")).modules == ("erofs", "ext4")
    (phrase,) = check_needs(kernel(), configured.replace("EXT4_FS=m", "EXT4_FS=y"), None).fatal()
    assert phrase == "CONFIG_EROFS_FS (the root file system; it is a module, erofs)"


def test_without_a_configuration_the_list_of_built_in_modules_counts(tmp_path: Path) -> None:
    bare = kernel(BANNER + NAMES.replace(b"erofs", b"x").replace(b"virtio_net", b"x"))
    found = check_needs(bare, None, modules(tmp_path, "virtio_net", builtin=("erofs",)))
    assert (found.missing, found.modules) == ((), ("virtio_net",))


def test_a_module_cannot_stand_for_what_must_be_built_in(tmp_path: Path) -> None:
    configured = ALL.replace("CONFIG_MEMCG=y", "CONFIG_MEMCG=m")
    (phrase,) = check_needs(kernel(), configured, modules(tmp_path, "memcg")).fatal()
    assert "CONFIG_MEMCG" in phrase and "must be built in" in phrase


def test_one_hypervisor_is_enough_and_the_other_is_reported() -> None:
    without_vsock = check_needs(kernel(), ALL.replace("CONFIG_VIRTIO_VSOCKETS=y\n", ""), None)
    assert without_vsock.fatal() == [] and "VIRTIO_VSOCKETS" in without_vsock.lacking(FIRECRACKER)[0]
    without_pvh = check_needs(kernel(note=b""), ALL, None)
    assert without_pvh.fatal() == [] and "CONFIG_PVH" in without_pvh.lacking(QEMU)[0]
    neither = check_needs(kernel(note=b""), ALL.replace("CONFIG_VIRTIO_VSOCKETS=y\n", ""), None).fatal()
    assert [phrase.split(" ")[0] for phrase in neither] == ["CONFIG_PVH", "CONFIG_VIRTIO_VSOCKETS"]
