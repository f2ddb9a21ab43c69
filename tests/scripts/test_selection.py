"""Selecting the files of a folder that belong to the script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from belljar.model.errors import InvalidScript
from belljar.scripts.selection import Selection, open_entry


def made(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_text("x")
    return root


def selected(root: Path, **more: tuple[str, ...]) -> set[str]:
    selection = Selection(**more)
    return {entry.name for entry in selection.entries(root) if entry.kind != "folder"}


def test_files_of_tools_are_excluded_and_listed(tmp_path: Path) -> None:
    made(
        tmp_path, "main.py", ".git/config", ".venv/a", "a/__pycache__/b.pyc", ".mypy_cache/x", "a/.DS_Store", "keep/.x"
    )
    made(
        tmp_path, "env/pyvenv.cfg", "conda/conda-meta/history", "node_modules/a.js", ".env", "dist/app.js", "build/x.js"
    )
    made(
        tmp_path,
        "rust/Cargo.toml",
        "rust/target/debug/x",
        "j/pom.xml",
        "j/target/X.class",
        "g/build.gradle",
        "g/build/y",
    )
    made(tmp_path, "cache/CACHEDIR.TAG", "cache/data", "target/readme")
    (tmp_path / "cache/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    selection = Selection()
    names = {entry.name for entry in selection.entries(tmp_path) if entry.kind == "file"}
    assert names == {
        *("main.py", "keep/.x", "node_modules/a.js", ".env", "dist/app.js", "build/x.js"),
        *("rust/Cargo.toml", "j/pom.xml", "g/build.gradle", "target/readme"),
    }
    assert (
        selection.sentence() == "left out: .git, .mypy_cache, .venv, cache, conda and 6 more (--include NAME sends it)"
    )
    assert Selection().sentence() is None


def test_a_file_named_git_is_excluded_as_in_worktrees(tmp_path: Path) -> None:
    assert selected(made(tmp_path, ".git", "main.py")) == {"main.py"}


def test_the_last_matching_pattern_decides(tmp_path: Path) -> None:
    made(tmp_path, "main.py", "a.log", "keep.log", "data/big.bin", "data/small.csv", "sub/data/big.bin", ".git/config")
    (tmp_path / ".belljarignore").write_text("# large\n*.log\n!keep.log\n/data/*.bin\n")
    assert selected(tmp_path) == {"main.py", "keep.log", "data/small.csv", "sub/data/big.bin"}
    assert selected(tmp_path, exclude=("keep.log", "sub")) == {"main.py", "data/small.csv"}
    assert selected(tmp_path, include=("a.log", ".git")) >= {"a.log", ".git/config"}
    assert selected(tmp_path, exclude=("*",), include=("main.py",)) == {"main.py"}


def test_invalid_patterns_are_refused_at_once(tmp_path: Path) -> None:
    made(tmp_path, "a" * 250)
    for pattern in ("*a" * 50 + "b", "*a*a*a*b", "**/" * 30 + "x", "!"):
        with pytest.raises(InvalidScript, match="pattern"):
            selected(tmp_path, exclude=(pattern,))
    with pytest.raises(InvalidScript, match="100 patterns with over 2 stars"):
        selected(tmp_path, exclude=("*a*a*b",) * 101)
    with pytest.raises(InvalidScript, match="1000 patterns"):
        selected(tmp_path, exclude=("x",) * 1001)
    for content, reason in ((b"x" * 70_000, "64 KB"), (b"\xff\xfe", "UTF-8")):
        (tmp_path / ".belljarignore").write_bytes(content)
        with pytest.raises(InvalidScript, match=reason):
            selected(tmp_path)
    (tmp_path / ".belljarignore").unlink()
    (tmp_path / ".belljarignore").symlink_to("/etc/passwd")
    with pytest.raises(InvalidScript, match=r"\.belljarignore cannot be read"):
        selected(tmp_path)
    (tmp_path / ".belljarignore").unlink()
    os.mkfifo(tmp_path / ".belljarignore")
    with pytest.raises(InvalidScript, match="not a regular file"):
        selected(tmp_path)


@pytest.mark.parametrize("moment", ["before it is read", "before its file is read"])
def test_a_link_that_takes_a_folders_place_is_not_followed(tmp_path: Path, moment: str) -> None:
    """Another user may own the folder and replace it meanwhile."""
    source = made(tmp_path / "source", "main.py", "data/key")
    made(tmp_path / "outside", "key", "other")
    (tmp_path / "outside/key").write_text("secret")
    entries = Selection().entries(source)
    name = "data" if moment == "before it is read" else "data/key"
    last = next(entry for entry in entries if entry.name == name)
    (source / "data").rename(tmp_path / "moved")
    (source / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidScript, match="cannot read data"):
        if last.kind == "file":
            open_entry(last)
        list(entries)


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "main.py", "secret/x")
    real = os.open

    def opened(path: str, *given: int, **more: int) -> int:
        if path == "secret":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *given, **more)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(InvalidScript, match="cannot read secret: Permission denied; leave it out with --exclude"):
        selected(tmp_path)
    assert selected(tmp_path, exclude=("secret",)) == {"main.py"}
