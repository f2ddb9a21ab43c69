"""A folder as a script."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from belljar.model.errors import InvalidScript, TooLarge
from belljar.scripts.folder import copy_folder
from belljar.scripts.limits import ExtractionBudget, UploadLimits
from belljar.scripts.selection import Selection
from belljar.scripts.tree import Tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source/lib").mkdir(parents=True)
    (tmp_path / "source/main.py").write_text("import lib.a")
    (tmp_path / "source/lib/a.py").write_text("a = 1")
    return tmp_path / "source"


def copied(source: Path, limits: UploadLimits | None = None) -> Tree:
    root = source.parent / "tree"
    root.mkdir()
    tree = Tree(root, ExtractionBudget(limits or UploadLimits()))
    copy_folder(source, tree)
    tree.create_links()
    return tree


def test_a_folder_is_copied_without_files_of_tools(source: Path) -> None:
    for made in (".git/config", "lib/__pycache__/a.pyc", "lib/.hidden"):
        (source / made).parent.mkdir(exist_ok=True)
        (source / made).write_text("x")
    (source / "main.py").chmod(0o4711)
    tree = copied(source)
    assert tree.files.keys() == {"main.py", "lib/a.py", "lib/.hidden"}
    assert (tree.root / "main.py").stat().st_mode & 0o7777 == 0o755


def test_links_inside_stay_links_and_links_out_are_refused(source: Path) -> None:
    (source / "again.py").symlink_to("lib/a.py")
    tree = copied(source)
    assert (tree.root / "again.py").readlink() == Path("lib/a.py")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_link_out_is_refused(source: Path, target: str) -> None:
    (source.parent / "outside").write_text("secret")
    (source / "link").symlink_to(target)
    with pytest.raises(InvalidScript, match="link"):
        copied(source)


def test_pipes_and_sockets_are_refused_without_being_opened(source: Path) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(InvalidScript, match="pipe or socket"):
        copied(source)


def test_a_socket_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(InvalidScript, match="pipe or socket"):
            copied(source)


def test_names_that_are_not_utf8_are_refused(source: Path) -> None:
    (source / os.fsdecode(b"\xff.py")).write_text("x")
    with pytest.raises(InvalidScript, match="not UTF-8"):
        copied(source)


def test_a_folder_that_is_too_large_is_refused(source: Path) -> None:
    with pytest.raises(TooLarge):
        copied(source, UploadLimits(max_unpacked_bytes=10))


def test_copying_a_folder_can_be_cancelled_when_all_is_excluded(source: Path) -> None:
    root, budget = source.parent / "tree", ExtractionBudget(UploadLimits())
    root.mkdir()
    budget.stop.set()
    with pytest.raises(InvalidScript, match="upload cancelled"):
        copy_folder(source, Tree(root, budget), Selection(exclude=("*",)))
