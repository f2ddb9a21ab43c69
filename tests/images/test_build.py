"""Builds: complete images, cached parts, and nothing left of interrupted builds."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.build import build_image, manifest_digest
from belljar.images.build_context import build_dir
from belljar.images.catalog import Images
from belljar.model.errors import DataFolderError, DiskFull, ImageBuildError, UnknownImage
from belljar.settings import Settings
from support.built_images import copy_build_cache
from support.running import alive, descendants
from support.silent_progress import SilentProgress

MAX_BYTES = 200_000_000


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


async def test_a_name_without_a_recipe_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownImage):
        await build_image("windows", Settings(data_dir=tmp_path / "data"), SilentProgress())
    assert not (tmp_path / "data").exists()


async def test_a_data_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(DataFolderError, match="cannot write"):
        await build_image("python", Settings(data_dir=tmp_path), SilentProgress())


@pytest.mark.root
async def test_a_full_disk_is_reported_and_nothing_is_left(small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    with pytest.raises(DiskFull, match="free some space"):
        await build_image("python", Settings(data_dir=small_disk, debian_mirror="http://127.0.0.1:1"), SilentProgress())
    assert Images(small_disk).list() == []
    assert list((small_disk / "cache").glob("build-*")) == []


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
async def test_an_unreachable_mirror_is_reported_and_files_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    (tmp_path / "cache/build-killed/kernel.d").mkdir(parents=True)
    nowhere = "http://127.0.0.1:1/debian"
    settings = Settings(data_dir=tmp_path, debian_mirror=nowhere, debian_security_mirror=nowhere)
    with pytest.raises(ImageBuildError, match=r"apt-get failed .*: E: "):
        await build_image("python", settings, SilentProgress())
    assert list((tmp_path / "cache").glob("build-*")) == []
    assert Images(tmp_path).list() == []


def test_an_image_has_the_content_of_its_manifest(own_images: Path) -> None:
    images = Images(own_images).list()
    assert [image.name for image in images] == ["python", "shell"]
    for image in images:
        manifest = image.manifest
        assert manifest.digest == manifest_digest(manifest)
        assert manifest.architecture == platform.machine()
        for part, path in (
            (manifest.kernel, image.kernel),
            (manifest.initramfs, image.initramfs),
            (manifest.root, image.root),
        ):
            with path.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
            assert path.stat().st_size == part.size_bytes
            assert path.stat().st_mode & 0o777 == 0o444
        assert sum(part.size_bytes for part in (manifest.kernel, manifest.initramfs, manifest.root)) <= MAX_BYTES
    python, shell = images
    assert (python.kernel, python.initramfs) == (shell.kernel, shell.initramfs)
    assert "python3" in python.manifest.packages and "python3" not in shell.manifest.packages


def test_cached_parts_are_not_built_again(own_images: Path) -> None:
    before = files_of(own_images / "images/parts")
    manifest = (own_images / "images/python.json").read_bytes()
    command = [sys.executable, "-m", "belljar", "image", "build", "python", "--data-dir", str(own_images)]
    environment = {**os.environ, "BELLJAR_ACCELERATOR": "tcg"}
    steps = [
        subprocess.run(command, check=True, capture_output=True, timeout=120, env=environment).stderr.splitlines()
        for _ in range(2)
    ]
    first_snapshot = b"==> booting a machine of python for the snapshot that jobs are cloned from"
    assert steps in ([[first_snapshot], []], [[], []])
    assert len(list((own_images / "snapshots").glob("*/snapshot.json"))) >= 1
    assert files_of(own_images / "images/parts") == before
    assert (own_images / "images/python.json").read_bytes() == manifest


def test_an_interrupted_build_leaves_nothing(own_images: Path, tmp_path: Path) -> None:
    with half_built(own_images, tmp_path) as (process, children, progress):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert not any(alive(pid) for pid in children)
    assert list((tmp_path / "images").glob("*.json")) == []
    assert list((tmp_path / "cache").glob("build-*")) == []
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert "Traceback" not in progress.read_text()


def test_a_killed_build_ends_its_tools_and_the_next_one_removes_its_files(own_images: Path, tmp_path: Path) -> None:
    with half_built(own_images, tmp_path) as (process, children, _):
        process.kill()
        process.wait(60)
        deadline = time.monotonic() + 60
        while any(alive(pid) for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert len(list((tmp_path / "cache").glob("build-*"))) == 1
    with build_dir(tmp_path, SilentProgress()) as work:
        assert list((tmp_path / "cache").glob("build-*")) == [work]


@contextlib.contextmanager
def half_built(own_images: Path, data_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int], Path]]:
    """Start a build and wait until it builds the root filesystem; yield its process and its output."""
    copy_build_cache(own_images / "cache/apt", data_dir / "cache/apt")  # so that little is fetched again
    command = [sys.executable, "-m", "belljar", "image", "build", "shell", "--data-dir", str(data_dir)]
    progress = data_dir / "progress"
    with progress.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while "root filesystem" not in progress.read_text() or len(descendants(process.pid)) < 4:
            assert process.poll() is None and time.monotonic() < deadline, progress.read_text()
            time.sleep(0.05)
        time.sleep(1)  # well into it
        children = descendants(process.pid)
        assert children
        yield process, children, progress
    finally:
        process.kill()
        process.wait()
