"""Applying layers: the rules of the specification, and protection against hostile ones."""

from __future__ import annotations

import io
import stat
import tarfile
from pathlib import Path

import pytest

from belljar.images.oci.layer import EntryCounter, LayerApplier
from belljar.images.oci.stream import ByteBudget, LayerStream
from belljar.images.oci.tree import RootTree
from belljar.model.errors import InvalidImage
from support.oci_layouts import archive, entry, folder, hard_link, link


def apply_layers(tree: Path, *layers: bytes, max_bytes: int = 1 << 30, max_files: int = 1000) -> None:
    root, budget, entries = RootTree(tree), ByteBudget(max_bytes), EntryCounter(max_files)
    for layer in layers:
        stream = LayerStream(io.BytesIO(layer), len(layer), budget)
        LayerApplier(root, entries).apply(stream)
        stream.finish()


def names(tree: Path) -> list[str]:
    return sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))


def outside(tree: Path) -> list[str]:
    return sorted(path.name for path in tree.parent.parent.rglob("*") if tree not in (path, *path.parents))


def test_later_layers_replace_files_of_earlier_ones(tree: Path) -> None:
    apply_layers(tree, archive(folder("a"), entry("a/x", b"1"), entry("a/y", b"1")), archive(entry("a/x", b"2")))
    assert (tree / "a/x").read_bytes() == b"2" and (tree / "a/y").read_bytes() == b"1"


def test_a_whiteout_hides_files_of_earlier_layers_and_not_of_its_own(tree: Path) -> None:
    lower = archive(folder("a"), entry("a/old", b"1"), entry("a/kept", b"1"), folder("d"), entry("d/x", b"1"))
    upper = archive(entry("a/new", b"2"), entry("a/.wh.old"), entry("a/.wh.new"), entry(".wh.d"), entry(".wh.never"))
    apply_layers(tree, lower, upper)
    assert names(tree) == ["a", "a/kept", "a/new"]


def test_an_opaque_folder_hides_all_earlier_content_in_any_order(tree: Path) -> None:
    lower = archive(folder("a"), folder("a/sub"), entry("a/sub/old", b"1"), entry("a/old", b"1"))
    for number, upper in enumerate(
        (
            archive(folder("a"), entry("a/.wh..wh..opq"), folder("a/sub"), entry("a/sub/new", b"2")),
            archive(folder("a"), folder("a/sub"), entry("a/sub/new", b"2"), entry("a/.wh..wh..opq")),
        )
    ):
        root = tree / str(number)
        root.mkdir()
        apply_layers(root, lower, upper)
        assert names(root) == ["a", "a/sub", "a/sub/new"]


def test_a_file_replaces_a_folder_and_the_reverse(tree: Path) -> None:
    apply_layers(
        tree, archive(folder("a"), entry("a/x"), entry("b")), archive(entry("a", b"file"), folder("b"), entry("b/y"))
    )
    assert names(tree) == ["a", "b", "b/y"]


def test_a_folder_that_is_a_link_is_followed_inside_the_image(tree: Path) -> None:
    apply_layers(
        tree, archive(folder("usr"), folder("usr/lib"), link("lib", "/usr/lib")), archive(entry("lib/x.so", b"so"))
    )
    assert (tree / "usr/lib/x.so").read_bytes() == b"so" and (tree / "lib").is_symlink()


@pytest.mark.parametrize("target", ["/", "..", "../..", "/../../..", "../../../../../../../tmp"])
def test_links_to_the_outside_are_resolved_inside(tree: Path, target: str) -> None:
    apply_layers(tree, archive(link("way", target), entry("way/out/x", b"1")))
    assert outside(tree) == ["jar"]
    assert [path for path in names(tree) if path.endswith("x")]


def test_an_absolute_link_to_a_file_is_replaced_and_not_written_through(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "jar" / "secret"
    secret.write_text("host")
    apply_layers(tree, archive(link("x", str(secret)), entry("x", b"guest")))
    assert secret.read_text() == "host"
    assert (tree / "x").read_bytes() == b"guest" and not (tree / "x").is_symlink()


@pytest.mark.parametrize(
    "member",
    [
        entry("../x", b"1"),
        entry("a/../../x", b"1"),
        entry("/etc/x", b"1"),
        hard_link("x", "/etc/passwd"),
        hard_link("x", "../../etc/passwd"),
        hard_link("x", "not-there"),
        link("x", ""),
        entry("x" * 300, b""),
        entry("a/" * 3000 + "x", b""),
        entry(".wh.."),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8),
        entry("etc/tty", type=tarfile.CHRTYPE, devmajor=5),
    ],
    ids=lambda member: f"{member[0].name[:20]}>{member[0].linkname}",
)
def test_entries_outside_the_image_or_of_unsupported_types_are_refused(
    tree: Path, member: tuple[tarfile.TarInfo, bytes]
) -> None:
    with pytest.raises(InvalidImage):
        apply_layers(tree, archive(member))
    assert outside(tree) == ["jar"]


def test_a_hard_link_through_a_link_to_the_outside_is_refused(tree: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    with pytest.raises(InvalidImage):
        apply_layers(tree, archive(link("up", "/../../.."), hard_link("stolen", f"up{secret}")))
    assert secret.stat().st_nlink == 1


def test_loops_of_links_are_refused(tree: Path) -> None:
    with pytest.raises(InvalidImage, match="loop of links"):
        apply_layers(tree, archive(link("a", "b"), link("b", "a"), entry("a/x", b"1")))


def test_files_below_a_file_are_refused(tree: Path) -> None:
    with pytest.raises(InvalidImage, match="not a folder"):
        apply_layers(tree, archive(entry("a", b"1"), entry("a/x", b"1")))


def test_setuid_setgid_and_devices_of_dev_are_dropped(tree: Path) -> None:
    members = [
        entry("su", b"#!", mode=0o6755),
        folder("shared", mode=0o3777),
        entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("run/pipe", type=tarfile.FIFOTYPE),
    ]
    apply_layers(tree, archive(*members))
    assert stat.S_IMODE((tree / "su").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "shared").stat().st_mode) == 0o1777
    assert not (tree / "dev/null").exists() and not (tree / "run/pipe").exists()


@pytest.mark.root
def test_owners_are_the_images(tree: Path) -> None:
    apply_layers(tree, archive(entry("x", b"1", uid=70000, gid=12), link("l", "x", uid=5)))
    assert ((tree / "x").stat().st_uid, (tree / "x").stat().st_gid, (tree / "l").lstat().st_uid) == (70000, 12, 5)


def test_files_and_bytes_are_counted_over_all_layers(tree: Path) -> None:
    layer = archive(*(entry(f"f{number}", b"x" * 1000) for number in range(60)))
    with pytest.raises(InvalidImage, match="over 100 files"):
        apply_layers(tree, layer, layer, max_files=100)
    with pytest.raises(InvalidImage, match="max_image_mb"):
        apply_layers(tree, layer, layer, max_bytes=150_000)


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, archive(entry("x", b"1" * 5000))[:2000]])
def test_a_damaged_archive_is_refused(tree: Path, data: bytes) -> None:
    with pytest.raises(InvalidImage):
        apply_layers(tree, data)
