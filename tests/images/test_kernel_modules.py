"""Modules of a kernel: in the order of their dependencies, of its release, in every compression."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from belljar.images.kernel_modules import find_modules, read_module
from belljar.model.errors import ImageBuildError
from support.kernels import ModuleFolder


@pytest.fixture
def kernel(tmp_path: Path) -> ModuleFolder:
    return ModuleFolder(tmp_path)


def test_modules_come_once_and_after_their_dependencies(kernel: ModuleFolder) -> None:
    kernel.add("virtio-blk", "virtio", "virtio_ring")
    kernel.add("virtio_ring", "virtio", compressed=True)
    kernel.add("virtio")
    kernel.add("overlay")
    assert kernel.order("virtio_blk", "overlay", "virtio") == ["virtio", "virtio_ring", "virtio-blk", "overlay"]


def test_soft_dependencies_come_before_and_may_be_missing(kernel: ModuleFolder) -> None:
    kernel.add("libcrc32c", softdep="pre: crc32c sha256 post: never")
    kernel.add("crc32c_generic")
    kernel.add("never")
    kernel.add("erofs", "libcrc32c")
    assert kernel.order("erofs") == ["crc32c_generic", "libcrc32c", "erofs"]


def test_dependencies_in_a_circle_end(kernel: ModuleFolder) -> None:
    kernel.add("libcrc32c", "crc32c", softdep="pre: erofs")
    kernel.add("crc32c", softdep="pre: libcrc32c")
    kernel.add("erofs", "libcrc32c")
    assert kernel.order("erofs") == ["crc32c", "libcrc32c", "erofs"]


def test_built_in_modules_are_omitted(kernel: ModuleFolder) -> None:
    kernel.add("overlay", "built_in")
    assert kernel.order("ext4", "overlay") == ["overlay"]


def test_a_missing_module_is_named(kernel: ModuleFolder) -> None:
    kernel.add("overlay", "missing")
    with pytest.raises(ImageBuildError, match=r"6\.1\.0-test has no module missing"):
        kernel.order("overlay")


def test_a_module_of_unknown_compression_is_named(kernel: ModuleFolder) -> None:
    kernel.add("overlay", data=b"\x28\xb5\x2f\xfd")
    with pytest.raises(ImageBuildError, match=r"overlay\.ko has an unknown compression"):
        kernel.order("overlay")


def test_gzip_and_zstd_are_read_and_damage_is_reported(kernel: ModuleFolder) -> None:
    plain = kernel.add("overlay")
    packed = plain.with_name("overlay.ko.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_module(packed) == plain.read_bytes()
    for ending in ("xz", "gz"):
        damaged = plain.with_name(f"damaged.ko.{ending}")
        damaged.write_bytes(b"junk" * 10)
        with pytest.raises(ImageBuildError, match=r"cannot decompress the module damaged\.ko"):
            read_module(damaged)
    if shutil.which("zstd") is not None:
        subprocess.run(["zstd", "-q", str(plain)], check=True)
        assert read_module(plain.with_name("overlay.ko.zst")) == plain.read_bytes()


def test_modules_of_another_release_are_refused(kernel: ModuleFolder) -> None:
    kernel.add("overlay", "virtio")
    kernel.add("virtio", release="5.10.0-other")
    with pytest.raises(ImageBuildError, match=r"virtio\.ko .* is of the release 5\.10\.0-other, the kernel's is 6\.1"):
        kernel.modules("overlay").check_release()


def test_the_folder_of_modules_is_found_above_and_a_wrong_one_is_reported(kernel: ModuleFolder, tmp_path: Path) -> None:
    for folder in (kernel.folder, kernel.folder.parent):
        assert find_modules(folder, "6.1.0-test", ()).folder == kernel.folder
    with pytest.raises(ImageBuildError, match=r"no modules of the release 6\.2; it has those of 6\.1\.0-test"):
        find_modules(tmp_path, "6.2", ())
    with pytest.raises(ImageBuildError, match="is not a folder"):
        find_modules(tmp_path / "none", "6.2", ())


def test_other_modules_have_another_digest(kernel: ModuleFolder) -> None:
    kernel.add("overlay", "virtio")
    kernel.add("virtio")
    before = kernel.modules("overlay").digest()
    kernel.add("virtio", data=b"\x7fELF changed")
    assert kernel.modules("overlay").digest() != before
