"""Hostile and damaged archives."""

from __future__ import annotations

import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.model.errors import InvalidScript, TooLarge
from belljar.scripts.limits import MB, UploadLimits
from support.archives import TAR_MODES, entry, tar, unpacked, zipped
from support.examples import examples

BAD_NAMES = ["../a", "a/../../b", "/etc/cron.d/a", "a\\..\\b", "C:/a", "c:\\a", "..", "a/" * 6 + "b", "n" * 256]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [lambda n: tar(entry(n, b"x")), lambda n: zipped((n, b"x"))], ids=["tar", "zip"])
def test_a_name_that_leaves_the_tree_is_refused(tmp_path: Path, name: str, make: Callable[[str], bytes]) -> None:
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, make(name))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("upload", "tree")] == []


@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(names=st.lists(st.text(alphabet="ab./\\é", min_size=1, max_size=6), max_size=4), as_zip=st.booleans())
def test_whatever_the_names_nothing_lands_outside(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], as_zip: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    data = zipped(*((name, b"x") for name in dict.fromkeys(names))) if as_zip else tar(*(entry(n, b"x") for n in names))
    try:
        tree = unpacked(folder, data, "upload.tar")
    except InvalidScript:
        tree = None
    assert {path.name for path in folder.iterdir()} == {"upload", "tree"}
    written = {str(path.relative_to(folder / "tree")) for path in (folder / "tree").rglob("*") if path.is_file()}
    assert tree is None or written == set(tree.files)


def test_a_nul_in_a_zip_name_does_not_cut_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidScript, match="NUL"):
        unpacked(tmp_path, zipped(("a.pyXb", b"")).replace(b"a.pyXb", b"a.py\0b"))


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidScript, match="not UTF-8"):
        unpacked(tmp_path, tar(entry("\udcff.py"), format=tarfile.GNU_FORMAT))


@pytest.mark.parametrize(
    "member",
    [
        entry("l", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("l", type=tarfile.SYMTYPE, linkname="../../etc/passwd"),
        entry("l", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("l", type=tarfile.LNKTYPE, linkname="../upload"),
        entry("l", type=tarfile.LNKTYPE, linkname="not-there"),
        entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        entry("d", type=tarfile.BLKTYPE, devmajor=8),
        entry("f", type=tarfile.FIFOTYPE),
        entry("u", type=b"Z"),
        entry("s", type=tarfile.GNUTYPE_SPARSE),
        entry("n", pax_headers={"size": "-1024"}),
        entry("s", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 15}),
    ],
    ids=[
        "absolute",
        "out",
        "hard-absolute",
        "hard-out",
        "hard-nowhere",
        "char",
        "block",
        "fifo",
        "unknown",
        "sparse",
        "negative",
        "pax-sparse",
    ],
)
def test_links_out_and_special_files_in_a_tar_are_refused(
    tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, tar(entry("main.py", b"x"), member))
    assert not any(path.is_symlink() for path in (tmp_path / "tree").rglob("*"))


def test_a_link_and_then_a_file_below_it_is_refused(tmp_path: Path) -> None:
    link = entry("out", type=tarfile.SYMTYPE, linkname="..")
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, tar(link, entry("out/upload", b"overwritten")))
    assert b"overwritten" not in (tmp_path / "upload").read_bytes()[:5]


@pytest.mark.parametrize("mode", [0o020666, 0o060666, 0o010666, 0o140666], ids=["char", "block", "fifo", "socket"])
def test_special_files_in_a_zip_are_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InvalidScript, match="device, pipe or socket"):
        unpacked(tmp_path, zipped(("x", b""), mode=mode))


@pytest.mark.parametrize("target", [b"/etc/passwd", b"../../x", b"", b"\xff", b"x" * 5000])
def test_links_out_in_a_zip_are_refused(tmp_path: Path, target: bytes) -> None:
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, zipped(("l", target), mode=0o120777))


@pytest.mark.parametrize("second", ["a", "a/b"])
def test_a_path_twice_or_as_file_and_folder_is_refused(tmp_path: Path, second: str) -> None:
    with pytest.raises(InvalidScript, match=r"occurs twice|both a"):
        unpacked(tmp_path, tar(entry("a", b"1"), entry(second, b"2")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_path_twice_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidScript, match="occurs twice"):
        unpacked(tmp_path, zipped(("a", b"1"), ("a", b"2")))


@pytest.mark.parametrize("form", ["zip", "tar.gz", "tar.xz"])
def test_a_bomb_is_stopped_by_its_ratio(tmp_path: Path, form: str) -> None:
    zeros = bytes(900_000)
    data = zipped(("zeros", zeros)) if form == "zip" else tar(entry("zeros", zeros), mode=TAR_MODES[form])
    limits = UploadLimits(max_unpacked_bytes=MB, max_ratio=20, ratio_floor_bytes=100_000, max_members=10)
    with pytest.raises(InvalidScript, match="ratio over 20"):
        unpacked(tmp_path, data, limits=limits)


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_bomb_is_stopped_by_its_total(tmp_path: Path, form: str) -> None:
    zeros = bytes(10 * MB)
    data = zipped(("zeros", zeros)) if form == "zip" else tar(entry("zeros", zeros), mode=TAR_MODES[form])
    with pytest.raises(TooLarge, match="over 1 MB"):
        unpacked(tmp_path, data, limits=UploadLimits(max_unpacked_bytes=MB, max_members=20, max_ratio=10**6))
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.name != "upload" and path.is_file())
    assert written < 4 * MB


def test_a_bomb_of_links_to_one_file_is_stopped(tmp_path: Path) -> None:
    links = [entry(f"l{n}", type=tarfile.LNKTYPE, linkname="a") for n in range(15)]
    with pytest.raises(TooLarge):
        unpacked(tmp_path, tar(entry("a", os.urandom(100_000)), *links))


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_bomb_of_members_is_stopped(tmp_path: Path, form: str) -> None:
    names = [f"f{n}" for n in range(21)]
    data = zipped(*((name, b"") for name in names)) if form == "zip" else tar(*(entry(name) for name in names))
    with pytest.raises(TooLarge, match="20 files"):
        unpacked(tmp_path, data)


def test_a_zip_that_lies_about_its_sizes_is_refused(tmp_path: Path) -> None:
    data = zipped(("a", bytes(500_000)))
    lying = data.replace(struct.pack("<L", 500_000), struct.pack("<L", 10))
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, lying)


def test_a_central_directory_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    record = b"PK\x01\x02" + bytes(42)
    directory = record * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), 30, 0)
    data = b"PK\x03\x04" + bytes(26) + directory + end
    with pytest.raises(InvalidScript, match="headers of over"):
        unpacked(tmp_path, data)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_tar_header_that_would_fill_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 900_000
    data = header.tobuf(tarfile.GNU_FORMAT) + b"1" * 900_096
    with pytest.raises(InvalidScript, match="headers of over 4096 bytes"):
        unpacked(tmp_path, data)


def test_headers_upon_headers_are_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XGLTYPE, 512
    with pytest.raises(InvalidScript, match="cannot be read"):
        unpacked(tmp_path, (header.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 1500, limits=UploadLimits())


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(("a", b"secret")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InvalidScript, match="encrypted; pack it without a password"):
        unpacked(tmp_path, bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_that_decompress_without_bounds_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(InvalidScript, match="deflate"):
        unpacked(tmp_path, zipped(("a", b"x" * 100), compression=method))


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]
    data = bytearray(lzma.compress(tar(entry("a", b"x")), filters=filters))
    start = 12  # the block header: size, flags, filter id, size of properties, dictionary size; then its CRC32
    length = (data[start] + 1) * 4
    data[start + 4] = 40  # 4 GiB - 1
    data[start + length - 4 : start + length] = struct.pack("<L", zlib.crc32(data[start : start + length - 4]))
    with pytest.raises(InvalidScript, match=r"[Mm]emory"):
        unpacked(tmp_path, bytes(data))


@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, form: str, keep: float) -> None:
    content = [(f"f{n}", os.urandom(5000)) for n in range(10)]
    data = zipped(*content) if form == "zip" else tar(*(entry(*one) for one in content), mode=TAR_MODES[form])
    with pytest.raises(InvalidScript):
        unpacked(tmp_path, data[: int(len(data) * keep)])


def test_a_tar_damaged_in_its_middle_is_not_read_as_a_shorter_one(tmp_path: Path) -> None:
    data = bytearray(tar(entry("a", b"x"), entry("b", b"y"), format=tarfile.USTAR_FORMAT))
    data[1024 + 150] ^= 0xFF  # the checksum of the second header
    with pytest.raises(InvalidScript, match="damaged at byte 1024"):
        unpacked(tmp_path, bytes(data))


def test_a_zip_that_points_to_before_its_own_start_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped(("a", b"x")))
    end = data.rindex(b"PK\5\6")
    directory = struct.unpack_from("<I", data, end + 16)[0]
    struct.pack_into("<I", data, end + 16, directory + 1000)
    with pytest.raises(InvalidScript, match="before the start"):
        unpacked(tmp_path, bytes(data))


def test_something_else_compressed_is_not_read_as_a_tar(tmp_path: Path) -> None:
    with pytest.raises(InvalidScript, match="not a tar archive"):
        unpacked(tmp_path, lzma.compress(b"print(1)\n"))


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_tree_or_a_clear_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([zipped(("a/b", b"x" * 50)), tar(entry("a/b", b"x" * 50), format=0)]))
    broken = bytearray(whole[:2048])
    for _ in range(data.draw(st.integers(1, 6))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpacked(tmp_path_factory.mktemp("damaged"), bytes(broken), "upload.tar")
    except (InvalidScript, TooLarge) as error:
        assert error.message
