"""Packed trees, read with the tools of erofs-utils."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from belljar.model.errors import DiskFull, HostError, MissingTool
from belljar.scripts.pack import pack_tree

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")


def a_tree(folder: Path, names: list[str]) -> Path:
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for name in names:
        path = tree / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 3000)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
    (tree / "link").symlink_to("b.py")
    (tree / "empty").touch(mode=0o644)
    return tree


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def extracted(disk: Path, out: Path) -> Path:
    """What fsck.erofs reads from the image, which it checks; it fails when the image is damaged."""
    subprocess.run(["fsck.erofs", f"--extract={out}", disk], capture_output=True, check=True)
    return out


def dumped(disk: Path, path: str) -> str:
    return subprocess.run(["dump.erofs", f"--path={path}", disk], capture_output=True, text=True, check=True).stdout


NAMES = ["b.py", "a/x.py", "a/y.sh", "c/é"]


async def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    one = a_tree(tmp_path / "one", NAMES)
    other = a_tree(tmp_path / "other", NAMES[::-1])
    os.utime(other / "b.py", (1, 1))
    await asyncio.gather(pack_tree(one, tmp_path / "one.erofs"), pack_tree(other, tmp_path / "other.erofs"))
    assert (tmp_path / "one.erofs").read_bytes() == (tmp_path / "other.erofs").read_bytes()


async def test_a_packed_tree_is_valid_and_unpacks_to_the_same_files(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, NAMES)
    disk = tmp_path / "disk.erofs"
    await pack_tree(tree, disk)
    assert disk.stat().st_size % 4096 == 0
    assert [path for path in names_in(tmp_path) if "/" not in path] == ["disk.erofs", "tree"]
    out = extracted(disk, tmp_path / "out")
    assert names_in(out) == names_in(tree)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert (out / path.relative_to(tree)).read_bytes() == path.read_bytes()
    assert (out / "link").readlink() == Path("b.py")


async def test_everything_belongs_to_the_jobs_user(tmp_path: Path) -> None:
    tree = a_tree(tmp_path, NAMES)
    await pack_tree(tree, tmp_path / "disk.erofs")
    for path, mode in (("/", "0755"), ("/a", "0755"), ("/b.py", "0644"), ("/a/y.sh", "0755")):
        shown = dumped(tmp_path / "disk.erofs", path)
        assert "Uid: 1000   Gid: 1000" in shown
        assert f"Access: {mode}" in shown
        assert "1970-01-01" in shown


async def test_an_empty_tree_is_one_block(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    await pack_tree(tmp_path / "tree", tmp_path / "disk.erofs")
    assert (tmp_path / "disk.erofs").stat().st_size == 4096


async def test_a_missing_tool_is_reported_with_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="apt-get install erofs-utils"):
        await pack_tree(tmp_path, tmp_path / "disk.erofs")


async def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"mkfs\.erofs failed"):
        await pack_tree(tmp_path / "nothing", tmp_path / "disk.erofs")
    assert names_in(tmp_path) == []


@pytest.mark.root
async def test_a_full_disk_is_reported_and_no_partial_file_stays(tmp_path: Path, small_disk: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(1_000_000))
    with pytest.raises(DiskFull, match="free some space"):
        await pack_tree(tree, small_disk / "disk.erofs")
    assert names_in(small_disk) == []
