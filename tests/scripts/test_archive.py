"""Archives made with common tools."""

from __future__ import annotations

import lzma
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from belljar.model.errors import InvalidScript
from belljar.scripts.archive import HEAD_BYTES, ArchiveKind, archive_kind, unpack
from belljar.scripts.limits import ExtractionBudget
from belljar.scripts.tree import Tree
from support.archives import SMALL, TAR_MODES, entry, files_of, tar, unpacked, zipped


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz"])
def test_every_kind_gives_the_same_tree(tmp_path: Path, form: str) -> None:
    content = {"main.py": b"print(1)\n" * 20_000, "deep/er/data": b"", "é.txt": os.urandom(70_000)}
    if form == "zip":
        data = zipped(*content.items())
    else:
        data = tar(*(entry(name, value) for name, value in content.items()), mode=TAR_MODES[form])
    tree = unpacked(tmp_path, data)
    assert files_of(tree) == content
    assert tree.folders == {"deep", "deep/er"}
    assert not any(path.stat().st_mode & 0o7133 for path in tree.root.rglob("*") if path.is_file())


def test_the_bytes_decide_the_format_and_not_the_name() -> None:
    assert archive_kind(zipped(("a", b"")), "a.tar.gz") is ArchiveKind.ZIP
    assert archive_kind(zipped(), "a") is ArchiveKind.ZIP
    assert archive_kind(tar(entry("a"))[:HEAD_BYTES], "a.py") is ArchiveKind.TAR
    assert archive_kind(b"print(1)", "a.py") is None
    assert archive_kind(b"", "a.py") is None
    for name in ("a.zip", "A.TGZ", "a.tar.xz"):
        with pytest.raises(InvalidScript, match="named like an archive"):
            archive_kind(b"print(1)", name)


@pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07\x00", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY"])
def test_other_archives_are_refused_with_what_to_use(magic: bytes) -> None:
    with pytest.raises(InvalidScript, match=r"use .zip, .tar.gz or .tar.xz"):
        archive_kind(magic + b"rest", "upload")


def test_executable_bits_are_kept_and_setuid_dropped(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, tar(entry("a", mode=0o6755), entry("b", mode=0o4600), entry("c", mode=0o1777)))
    assert {name: (tree.root / name).stat().st_mode & 0o7777 for name in "abc"} == {"a": 0o755, "b": 0o644, "c": 0o755}


def test_a_zip_keeps_executable_bits_and_drops_setuid(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, zipped(("run.sh", b"x"), mode=0o104711))
    assert (tree.root / "run.sh").stat().st_mode & 0o7777 == 0o755


def test_links_inside_are_kept(tmp_path: Path) -> None:
    members = [entry("lib/a.py", b"x"), entry("main.py", type=tarfile.SYMTYPE, linkname="lib/a.py")]
    members.append(entry("b.py", type=tarfile.LNKTYPE, linkname="lib/a.py"))
    tree = unpacked(tmp_path, tar(*members))
    assert (tree.root / "main.py").readlink() == Path("lib/a.py")
    assert (tree.root / "b.py").read_bytes() == b"x"


def test_a_zip_keeps_links_inside(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, zipped(("main.py", b"lib/a.py"), mode=0o120777))
    assert (tree.root / "main.py").readlink() == Path("lib/a.py")


def test_archives_of_gnu_tar_and_of_a_concatenation_are_read(tmp_path: Path) -> None:
    long_name = "/".join(["n" * 60] * 3)
    plain = tar(entry(long_name, b"long"), entry("b", b"x" * 100_000), format=tarfile.GNU_FORMAT)
    half = len(plain) // 2
    tree = unpacked(tmp_path, lzma.compress(plain[:half]) + b"\0" * 8 + lzma.compress(plain[half:]))
    assert tree.files.keys() == {long_name, "b"}


@pytest.mark.parametrize(("raw", "name"), [("é".encode(), "é.py"), (b"\x82\x82", "éé.py")], ids=["utf-8", "cp437"])
def test_names_of_zips_without_the_flag_for_utf8_are_read_the_same_everywhere(
    tmp_path: Path, raw: bytes, name: str
) -> None:
    tree = unpacked(tmp_path, zipped(("XX.py", b"")).replace(b"XX.py", raw + b".py"))
    assert tree.files.keys() == {name}


def test_files_of_the_macos_finder_are_skipped(tmp_path: Path) -> None:
    tree = unpacked(tmp_path, zipped(("p/main.py", b""), ("__MACOSX/p/._main.py", b""), ("p/.DS_Store", b"")))
    assert tree.files.keys() == {"p/main.py"}


def test_extraction_can_be_cancelled(tmp_path: Path) -> None:
    source = tmp_path / "upload"
    source.write_bytes(zipped(("a", b"x")))
    (tmp_path / "tree").mkdir()
    budget = ExtractionBudget(SMALL)
    stopper = threading.Thread(target=budget.stop.set)
    stopper.start()
    stopper.join()
    with pytest.raises(InvalidScript, match="upload cancelled"):
        unpack(source, ArchiveKind.ZIP, Tree(tmp_path / "tree", budget), budget, tmp_path / "spare")


def test_an_archive_of_the_systems_own_tar_is_read(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/main.py").write_text("print(1)")
    subprocess.run(["tar", "-czf", "p.tar.gz", "project"], cwd=tmp_path, check=True)
    assert files_of(unpacked(tmp_path, (tmp_path / "p.tar.gz").read_bytes())) == {"project/main.py": b"print(1)"}
