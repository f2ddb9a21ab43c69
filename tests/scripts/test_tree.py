"""The tree: valid names, and nothing written outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from belljar.model.errors import InvalidScript, TooLarge
from belljar.scripts.limits import ExtractionBudget, UploadLimits
from belljar.scripts.pack import pack_tree
from belljar.scripts.tree import MAX_NAME_BYTES, Tree, member_path


def new_tree(folder: Path, limits: UploadLimits | None = None) -> Tree:
    root = folder / "tree"
    root.mkdir()
    return Tree(root, ExtractionBudget(limits or UploadLimits()))


@given(name=st.text(alphabet=st.sampled_from("./\\\0:aZ é\udc80\n"), max_size=20))
@example("..")
@example("a/../../b")
@example("/etc/passwd")
@example("C:\\windows")
def test_a_name_stays_below_the_root_or_is_refused(name: str) -> None:
    try:
        path = member_path(name, max_depth=8)
    except InvalidScript:
        return
    assert os.path.normpath(os.path.join("/root", path)).startswith("/root")
    assert path == "" or not {"", ".", ".."} & set(path.split("/"))
    assert member_path(path or ".", max_depth=8) == path
    assert not set("\0\\") & set(path)


@given(parts=st.lists(st.text(alphabet="abcé. -", min_size=1, max_size=8).filter(lambda p: p.strip(".")), min_size=1))
def test_ordinary_names_are_kept_as_they_are(parts: list[str]) -> None:
    name = "/".join(parts)
    assert member_path(name, max_depth=1000) == name
    assert member_path(f"./{name}/", max_depth=1000) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        ("a\\b", "backslash"),
        ("/a", "absolute"),
        ("c:a", "drive letter"),
        ("a/../b", "contains .."),
        ("a/" * 9 + "b", "folders deep"),
        ("\udc80", "not UTF-8"),
        ("é" * 128, "too long"),
        (("a" * 200 + "/") * 6, "too long"),
    ],
)
def test_a_bad_name_is_refused_with_its_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidScript, match=reason):
        member_path(name, max_depth=8)


def test_modes_are_0644_and_0755_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        tree = new_tree(tmp_path)
        tree.add_file("folder/plain", [b"x"])
        tree.add_file("program", [b"x"], executable=True)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (tree.root, *tree.root.rglob("*"))}
    assert modes == {"tree": 0o755, "folder": 0o755, "plain": 0o644, "program": 0o755}


@pytest.mark.parametrize("second", ["a", "a/b", "./a", "a/"])
def test_two_members_cannot_have_one_path(tmp_path: Path, second: str) -> None:
    tree = new_tree(tmp_path)
    tree.add_file("a", [b"x"])
    with pytest.raises(InvalidScript):
        tree.add_file(second, [b"y"])
    assert (tree.root / "a").read_bytes() == b"x"


def test_a_folder_cannot_become_a_file_or_a_link(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    tree.add_folder("a")
    tree.add_folder("a/")
    with pytest.raises(InvalidScript, match="both a file and a folder"):
        tree.add_file("a", [])
    with pytest.raises(InvalidScript, match="both a file and a folder"):
        tree.add_link("a", "b")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    tree.add_link("link", "elsewhere")
    with pytest.raises(InvalidScript):
        tree.add_file("link/file", [b"x"])


@pytest.mark.parametrize(
    ("links", "bad"),
    [
        ({"a": "../b"}, True),
        ({"a/b": "../../c"}, True),
        ({"d/e/l": "../..", "m": "d/e/l/../x"}, True),
        ({"a": "a"}, True),
        ({"a": "b", "b": "a"}, True),
        ({"a": "nothing"}, False),
        ({"a/b": "../c"}, False),
        ({"l": "d", "m": "l/file"}, False),
    ],
)
def test_links_may_lead_anywhere_inside_and_nowhere_else(tmp_path: Path, links: dict[str, str], bad: bool) -> None:
    tree = new_tree(tmp_path)
    tree.add_file("d/file", [b"x"])
    for name, target in links.items():
        tree.add_link(name, target)
    if bad:
        with pytest.raises(InvalidScript, match=r"leads out|loop"):
            tree.create_links()
        assert not any(path.is_symlink() for path in tree.root.rglob("*"))
        return
    tree.create_links()
    assert {str(p.relative_to(tree.root)) for p in tree.root.rglob("*") if p.is_symlink()} == set(links)


@pytest.mark.parametrize("target", ["", "/etc/passwd", "a\0b", "x" * 1025, "\udc80"])
def test_a_link_with_a_bad_target_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(InvalidScript):
        new_tree(tmp_path).add_link("a", target)


def test_a_folder_that_holds_everything_becomes_the_root(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    tree.add_file("project/main.py", [b"x"])
    tree.add_link("project/again.py", "main.py")
    assert tree.strip_folder()
    tree.create_links()
    assert tree.is_file("main.py")
    assert tree.is_file("again.py")
    assert (tree.root / "again.py").read_bytes() == b"x"
    assert not tree.strip_folder()


def test_a_link_cannot_use_the_folder_that_was_stripped(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    tree.add_file("project/main.py", [b"x"])
    tree.add_link("project/again.py", "../project/main.py")
    assert tree.strip_folder()
    with pytest.raises(InvalidScript, match="leads out"):
        tree.create_links()


def test_folders_that_only_occur_in_paths_count_as_members(tmp_path: Path) -> None:
    tree = new_tree(tmp_path, UploadLimits(max_members=5))
    with pytest.raises(TooLarge, match="5 files and folders"):
        tree.add_file("a/b/c/d/e/f", [])


def test_the_digest_depends_on_everything_that_runs_and_not_on_order(tmp_path: Path) -> None:
    digests = []
    changes: list[dict[str, object]] = [
        {},
        {"files": {"b": b"2", "d/a": b"1"}},
        {"files": {"d/a": b"1", "b": b"3"}},
        {"files": {"d/a": b"1", "c": b"2"}},
        {"executable": True},
        {"link": "d"},
        {"folder": "empty"},
        {"language": "shell"},
        {"entrypoint": "d/a"},
    ]
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        folder.mkdir()
        tree = new_tree(folder)
        files = change.get("files", {"d/a": b"1", "b": b"2"})
        assert isinstance(files, dict)
        for name, content in files.items():
            tree.add_file(name, [content], executable=bool(change.get("executable")))
        tree.add_link("link", str(change.get("link", "b")))
        tree.add_folder(str(change.get("folder", "d")))
        digests.append(tree.digest(str(change.get("language", "python")), str(change.get("entrypoint", "b"))))
    assert digests[0] == digests[1]
    assert len(set(digests)) == len(changes) - 1


def test_links_that_take_long_to_follow_are_refused_before_they_do(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    with pytest.raises(InvalidScript, match=r"over 1024 bytes or .* folders"):
        tree.add_link("link", "a/" * 500)
    for number in range(9000):
        tree.add_link(f"link{number}", "a/" * 24 + str(number))
    with pytest.raises(InvalidScript, match="links are too many or too long"):
        tree.create_links()


async def test_the_longest_name_can_be_packed_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    tree = new_tree(tmp_path)
    tree.add_file("a" * MAX_NAME_BYTES, [b"x"])
    await pack_tree(tree.root, tmp_path / "packed.erofs")
    assert (tmp_path / "packed.erofs").stat().st_size > 0
    with pytest.raises(InvalidScript, match=rf"too long \({MAX_NAME_BYTES} bytes a name"):
        tree.add_file("a" * (MAX_NAME_BYTES + 1), [b"x"])
