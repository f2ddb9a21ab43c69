"""The custom kernel: its configuration, missing tools; a compiled one that boots."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from belljar.images import build
from belljar.images.catalog import Images
from belljar.images.custom_kernel import (
    compile_kernel,
    configuration,
    configuration_digest,
    kernel_origin,
    require_compiler,
)
from belljar.images.kernel_options import lost_options, options
from belljar.model.errors import HostError, ImageBuildError, InvalidOption, MissingTool
from belljar.model.image import Image, Part
from belljar.settings import Settings
from support.silent_progress import SilentProgress

KERNEL = os.environ.get("BELLJAR_TEST_KERNEL")


def test_every_line_of_the_configuration_is_an_option_and_none_occurs_twice() -> None:
    lines = [line for line in configuration().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r'CONFIG_\w+=(y|n|\d+|".*")', line) for line in lines)
    names = [line.partition("=")[0] for line in lines]
    assert sorted(set(names)) == sorted(names)
    assert options(configuration())["CONFIG_MODULES"] == "n"


def test_lost_options_are_listed_and_disabled_ones_may_be_missing() -> None:
    requested = 'CONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\nCONFIG_D=8\nCONFIG_E=y\nCONFIG_F="x"\n# a comment\n'
    made = '#\n# CONFIG_C is not set\nCONFIG_A=y\nCONFIG_D=64\n# CONFIG_E is not set\nCONFIG_F="x"\nCONFIG_G=y\n'
    assert lost_options(requested, made) == ["CONFIG_D=8", "CONFIG_E=y"]
    assert lost_options(requested, made + "CONFIG_B=y\n") == ["CONFIG_B=n", "CONFIG_D=8", "CONFIG_E=y"]


def test_a_kernel_of_another_source_or_configuration_has_another_origin() -> None:
    assert kernel_origin("6.1.1-1") != kernel_origin("6.1.2-1")
    assert configuration_digest()[:12] in kernel_origin("6.1.1-1")


def test_all_missing_tools_of_the_compiler_are_listed_at_once(tmp_path: Path) -> None:
    for program in ("bc", "bison", "gcc", "ld", "strip", "tar", "xz"):
        (tmp_path / program).write_text("")
        (tmp_path / program).chmod(0o755)
    (tmp_path / "stdio.h").write_text("")
    with pytest.raises(MissingTool, match=r"needs flex, make, gelf\.h; install with: apt-get install .*libelf-dev"):
        require_compiler(str(tmp_path), tmp_path)
    for name in ("flex", "make", "gelf.h"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    require_compiler(str(tmp_path), tmp_path)


async def test_another_architecture_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(HostError, match="no custom kernel configuration for aarch64"):
        await build.build_image("shell", Settings(data_dir=tmp_path / "data"), SilentProgress(), kernel="custom")
    assert not (tmp_path / "data").exists()


def source_package(folder: Path, makefile: str) -> Path:
    """A package as linux-source has it, around a source of one Makefile."""
    content = folder / "content"
    (content / "usr/src").mkdir(parents=True)
    (content / "DEBIAN").mkdir()
    (content / "DEBIAN/control").write_text(
        "Package: linux-source-0\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (folder / "Makefile").write_text(makefile)
    with tarfile.open(content / "usr/src/linux-source-0.tar.xz", "w:xz") as archive:
        archive.add(folder / "Makefile", "linux-source-0/Makefile")
    package = folder / "linux-source-0.deb"
    subprocess.run(["dpkg-deb", "-b", content, package], check=True, capture_output=True)
    return package


@pytest.fixture
def compiler() -> None:
    try:
        require_compiler()
    except MissingTool as missing:
        pytest.skip(missing.message)


@pytest.mark.usefixtures("compiler")
async def test_a_source_is_configured_compiled_and_stripped(tmp_path: Path) -> None:
    """The same steps as for Linux, for a source that is compiled in no time: it keeps what it was configured with."""
    makefile = (
        "allnoconfig:\n\tcp $(KCONFIG_ALLCONFIG) .config\n"
        "vmlinux:\n\techo 'char date[] = \"$(KBUILD_BUILD_TIMESTAMP)\"; int main(void) { return 0; }' > main.c\n"
        "\tgcc -g -o vmlinux main.c\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    package = source_package(tmp_path, makefile)
    await compile_kernel(package, tmp_path / "out", work, tmp_path / "log", SilentProgress())
    assert (work / "source/.config").read_text() == configuration()
    made = (tmp_path / "out").read_bytes()
    assert made.startswith(b"\x7fELF")
    assert b"1970-01-01" in made
    assert len(made) < (work / "source/vmlinux").stat().st_size


@pytest.mark.usefixtures("compiler")
async def test_a_source_that_does_not_support_the_configuration_is_not_compiled(tmp_path: Path) -> None:
    makefile = "allnoconfig:\n\tgrep -v VIRTIO_BLK $(KCONFIG_ALLCONFIG) > .config\nvmlinux:\n\ttouch vmlinux\n"
    work = tmp_path / "work"
    work.mkdir()
    package = source_package(tmp_path, makefile)
    with pytest.raises(ImageBuildError, match="does not support CONFIG_VIRTIO_BLK=y; build with --kernel stock"):
        await compile_kernel(package, tmp_path / "out", work, tmp_path / "log", SilentProgress())
    assert not (work / "source/vmlinux").exists()


@pytest.mark.usefixtures("compiler")
async def test_an_error_of_the_compiler_is_reported(tmp_path: Path) -> None:
    makefile = "allnoconfig:\n\tcp $(KCONFIG_ALLCONFIG) .config\nvmlinux:\n\techo 'no such thing' > a.c; gcc -c a.c\n"
    work = tmp_path / "work"
    work.mkdir()
    package = source_package(tmp_path, makefile)
    with pytest.raises(ImageBuildError, match=r"make failed \(exit 2\): "):
        await compile_kernel(package, tmp_path / "out", work, tmp_path / "log", SilentProgress())
    assert "no such thing" in (tmp_path / "log").read_text()


#: A program that asks the kernel for what scripts use: each line is a thing that a configuration may lack.
LOOK = r"""
import asyncio, ctypes, mmap, multiprocessing, os, pathlib, select, signal, socket, subprocess, tempfile, threading
assert not pathlib.Path('/proc/modules').exists()
assert os.cpu_count() == 2, os.cpu_count()
assert subprocess.run(['sh', '-c', 'echo ok'], capture_output=True).stdout == b'ok\n'
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
async def echo():
    process = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)
    return (await process.communicate(b'hello'))[0]
assert asyncio.run(echo()) == b'hello'
for kind in (select.epoll, lambda: os.memfd_create('x'), lambda: os.eventfd(0), os.openpty, socket.socketpair):
    kind()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.inotify_init() >= 0 and libc.timerfd_create(1, 0) >= 0 and libc.shmget(0, 4096, 0o1600) >= 0
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
os.mkfifo('fifo'); os.symlink('fifo', 'link')
with tempfile.TemporaryFile() as file:
    file.write(bytes(4096)); file.flush()
    mmap.mmap(file.fileno(), 4096)[0] = 1
assert os.path.exists('/proc/self/maps') and os.path.exists('/dev/shm') and os.getrandom(8) != bytes(8)
assert pathlib.Path('/proc/self/cgroup').exists() and pathlib.Path('/proc/self/io').exists()
assert 'overlay' in pathlib.Path('/proc/mounts').read_text()
print('all there')
"""


async def image_of(kernel: bytes, image_dir: Path) -> Image:
    """Build the image python with the cached part of a compiled kernel."""
    digest = hashlib.sha256(kernel).hexdigest()
    (image_dir / "images" / "parts" / digest).write_bytes(kernel)
    inputs = "\0".join([Settings().debian_suite, "x86_64", configuration_digest()])
    note = image_dir / "cache/notes" / f"kernel-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}.json"
    note.write_text(Part(sha256=digest, size_bytes=len(kernel), origin=kernel_origin("6.1")).model_dump_json())
    return await build.build_image("python", Settings(data_dir=image_dir), SilentProgress(), kernel="custom")


async def test_a_compiled_kernel_is_cached_and_the_stock_one_can_be_restored(image_dir: Path) -> None:
    stock = Images(image_dir).get("python").manifest
    custom = (await image_of(b"\x7fELF compiled", image_dir)).manifest
    assert custom.kernel.origin == kernel_origin("6.1")
    assert custom.initramfs.size_bytes < stock.initramfs.size_bytes
    assert (custom.root, custom.languages) == (stock.root, stock.languages)
    assert (await build.build_image("python", Settings(data_dir=image_dir), SilentProgress())).manifest == stock


@pytest.mark.skipif(KERNEL is None, reason="BELLJAR_TEST_KERNEL names no compiled kernel (vmlinux)")
async def test_a_compiled_kernel_boots_and_runs_scripts(image_dir: Path, tmp_path: Path) -> None:
    assert KERNEL is not None
    await image_of(Path(KERNEL).read_bytes(), image_dir)
    (tmp_path / "look.py").write_text(LOOK)
    for disk in ([], ["--disk", "256"]):
        command = [sys.executable, "-m", "belljar", "run", str(tmp_path / "look.py"), "--image", "python"]
        command += ["--vcpus", "2", *disk, "--data-dir", str(image_dir)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout) == (0, "all there\n"), done.stderr


def test_a_dockerfile_cannot_have_a_custom_kernel(tmp_path: Path) -> None:
    from belljar.cli.image import build as command

    with pytest.raises(InvalidOption, match="remove the other options"):
        command("name", dockerfile=tmp_path / "Dockerfile", kernel="custom", data_dir=tmp_path)
