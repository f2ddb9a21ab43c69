"""An archive from a sandbox writes nothing outside of its folder and nothing through a link."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from belljar.client.errors import LocalPathRefused
from belljar.client.local_tree import extract_folder, pack_folder


def archive(*entries: tuple[str, str | bytes]) -> io.BytesIO:
    """Return an archive of files (bytes) and links (text)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size, member.mode = len(content), 0o4755
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
    packed.seek(0)
    return packed


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "/".join("d" * 200)])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LocalPathRefused, match="which leaves the folder"):
        extract_folder(archive((name, b"x")), tmp_path / "target")
    assert [path.name for path in tmp_path.rglob("*")] == ["target"]


def test_links_are_left_out_and_named(tmp_path: Path) -> None:
    left_out = extract_folder(archive(("a", b"x"), ("link", "/etc/passwd"), ("b/c", b"y")), tmp_path / "t")
    assert left_out == ["link"]
    assert (tmp_path / "t/b/c").read_bytes() == b"y"
    assert (tmp_path / "t/a").stat().st_mode & 0o7000 == 0


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (target / "folder").symlink_to(outside)
    (target / "file").symlink_to(outside / "kept")
    extract_folder(archive(("file", b"new")), target)
    assert (target / "file").read_bytes() == b"new" and not (target / "file").is_symlink()
    for name in ("folder/made", "folder/kept"):
        with pytest.raises(LocalPathRefused, match="folder exists and is no folder"):
            extract_folder(archive((name, b"new")), target)
    assert [path.name for path in outside.iterdir()] == ["kept"] and (outside / "kept").read_text() == "kept"


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(b"x" * 100_000)
    (source / "run").write_text("#!/bin/sh")
    (source / "run").chmod(0o755)
    (source / "twice").hardlink_to(source / "run")
    packed = io.BytesIO()
    pack_folder(source, packed)
    packed.seek(0)
    assert extract_folder(packed, tmp_path / "back") == []
    assert (tmp_path / "back/a/b/file").read_bytes() == b"x" * 100_000
    assert (tmp_path / "back/twice").read_text() == "#!/bin/sh"
    assert (tmp_path / "back/run").stat().st_mode & 0o111


def test_a_small_archive_of_large_files_fills_no_disk(tmp_path: Path) -> None:
    with pytest.raises(LocalPathRefused, match="over 100 bytes"):
        extract_folder(archive(("a", b"x" * 60), ("b", b"x" * 60)), tmp_path / "t", max_bytes=100)
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["a"]
    sparse = tarfile.TarInfo("sparse")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    content = b"1\n0\n0\n".ljust(512, b"\0")
    sparse.size = len(content)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(sparse, io.BytesIO(content))
    packed.seek(0)
    with pytest.raises(LocalPathRefused, match="over 1000000 bytes"):
        extract_folder(packed, tmp_path / "s", max_bytes=1_000_000)


def test_a_broken_archive_is_an_error(tmp_path: Path) -> None:
    data = archive(("a", b"x" * 10_000)).getvalue()[:3000]
    with pytest.raises(LocalPathRefused, match="the archive is broken"):
        extract_folder(io.BytesIO(data), tmp_path / "t")


def test_a_header_of_any_length_takes_no_memory(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("x")
    long_name.type, long_name.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(LocalPathRefused, match="header of over"):
        extract_folder(io.BytesIO(long_name.tobuf() + bytes(4096)), tmp_path / "t")
