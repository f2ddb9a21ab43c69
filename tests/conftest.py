"""What tests stand on: images built once, disks that are full or read-only, and the reasons to skip."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_VM_TOOLS = ("qemu-system-x86_64", "bwrap", "mmdebstrap", "mkfs.erofs", "setpriv")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs to run as root")
    if item.get_closest_marker("vm"):
        missing = [tool for tool in _VM_TOOLS if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"{', '.join(missing)} not found; script/bootstrap installs it")


@pytest.fixture(scope="session")
def built_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the images python and shell, built as a person would build them.

    BELLJAR_TEST_IMAGES names a folder that outlives the run, in which only what has changed is built again.
    """
    kept = os.environ.get("BELLJAR_TEST_IMAGES")
    data_dir = Path(kept) if kept else tmp_path_factory.mktemp("images")
    data_dir.mkdir(exist_ok=True)
    data_dir.chmod(0o755)
    for name in ("python", "shell"):
        command = [sys.executable, "-m", "belljar", "image", "build", name, "--data-dir", str(data_dir)]
        subprocess.run(command, check=True, timeout=900, env={**os.environ, "BELLJAR_SNAPSHOTS": "off"})
    return data_dir


@pytest.fixture(scope="session")
def language_images(built_images: Path) -> Path:
    """The same data folder with the images of all languages; they share its cache of packages."""
    for name in ("scripting", "native", "go", "java"):
        command = [sys.executable, "-m", "belljar", "image", "build", name, "--data-dir", str(built_images)]
        subprocess.run(command, check=True, timeout=900, env={**os.environ, "BELLJAR_SNAPSHOTS": "off"})
    return built_images


@pytest.fixture
def data_dir(built_images: Path, tmp_path: Path) -> Path:
    """An empty data folder with the built images."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "images").symlink_to(built_images / "images")
    # The choice is a matter of its own test; probing for KVM takes seconds.
    (folder / "belljar.toml").write_text('accelerator = "tcg"\nlog_format = "text"\n')
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 256 KiB."""
    with _mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=256k", "belljar-test") as folder:
        yield folder


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB that holds at most 100 files and folders."""
    with _mounted(tmp_path / "few", "-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "belljar-test") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder one that cannot be written, for root too."""
    with contextlib.ExitStack() as held:

        def protect(folder: Path) -> None:
            if os.geteuid() != 0:
                folder.chmod(0o500)
                held.callback(folder.chmod, 0o700)
                return
            held.enter_context(_mounted(folder, "--bind", str(folder)))
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)

        yield protect


@contextlib.contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", *options, folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
