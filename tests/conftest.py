"""What tests stand on: images built once, and the reasons to skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
    """A data folder with the images python and shell, built as a person would build them."""
    data_dir = tmp_path_factory.mktemp("images")
    data_dir.chmod(0o755)
    for name in ("python", "shell"):
        command = [sys.executable, "-m", "belljar", "image", "build", name, "--data-dir", str(data_dir)]
        subprocess.run(command, check=True, timeout=600)
    return data_dir


@pytest.fixture(scope="session")
def language_images(built_images: Path) -> Path:
    """The same data folder with the images of all languages; they share its cache of packages."""
    for name in ("scripting", "native", "go", "java"):
        command = [sys.executable, "-m", "belljar", "image", "build", name, "--data-dir", str(built_images)]
        subprocess.run(command, check=True, timeout=600)
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
