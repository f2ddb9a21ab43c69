"""Layouts: the selection of one image, and the verification of every digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from belljar.images.oci.layout import check_blob, read_layout
from belljar.model.errors import InvalidImage
from support.oci_layouts import Layout, archive, entry, new_layout

LAYER = archive(entry("x", b"1"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return new_layout(tmp_path / "layout")


def test_the_one_image_of_a_layout(layout: Layout) -> None:
    layout.add([LAYER, archive(entry("y", b"2"))], {"Env": ["A=1"]})
    image = read_layout(layout.folder, architecture="amd64")
    assert image.config["config"] == {"Env": ["A=1"]} and len(image.layers) == 2
    for blob in image.layers:
        check_blob(blob)


def test_the_tag_selects_one_of_several_images(layout: Layout) -> None:
    layout.add([LAYER], {"User": "a"}, tag="one").add([LAYER], {"User": "b"}, tag="two")
    assert read_layout(layout.folder, architecture="amd64", tag="two").config["config"] == {"User": "b"}
    with pytest.raises(InvalidImage, match=r"several images.*one, two"):
        read_layout(layout.folder, architecture="amd64")
    with pytest.raises(InvalidImage, match="no image with the tag 'three'"):
        read_layout(layout.folder, architecture="amd64", tag="three")


def test_this_architecture_is_selected_from_a_multi_platform_index(layout: Layout) -> None:
    layout.add([LAYER], {"User": "arm"}, architecture="arm64").add([LAYER], {"User": "amd"})
    for descriptor, architecture in zip(layout.manifests, ("arm64", "amd64"), strict=True):
        descriptor["platform"] = {"os": "linux", "architecture": architecture}
    inner = layout.blob(json.dumps({"schemaVersion": 2, "manifests": layout.manifests}).encode())
    layout.manifests = [{"mediaType": "application/vnd.oci.image.index.v1+json"} | inner]
    layout.write()
    assert read_layout(layout.folder, architecture="amd64").config["config"] == {"User": "amd"}
    assert read_layout(layout.folder, architecture="arm64").config["config"] == {"User": "arm"}
    with pytest.raises(InvalidImage, match=r"is for linux/amd64, linux/arm64; this host runs linux/riscv64"):
        read_layout(layout.folder, architecture="riscv64")


def test_the_config_may_declare_another_architecture_too(layout: Layout) -> None:
    layout.add([LAYER], architecture="arm64")
    with pytest.raises(InvalidImage, match="is for linux/arm64; this host runs linux/amd64"):
        read_layout(layout.folder, architecture="amd64")


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_changed_blob_is_refused(layout: Layout, which: str) -> None:
    layout.add([LAYER], compress=False)
    manifest = json.loads((layout.folder / "blobs/sha256" / layout.manifests[0]["digest"][7:]).read_text())
    digests = {"config": manifest["config"], "layer": manifest["layers"][0], "manifest": layout.manifests[0]}
    path = layout.folder / "blobs/sha256" / digests[which]["digest"][7:]
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidImage, match="another size or digest"):
        for blob in read_layout(layout.folder, architecture="amd64").layers:
            check_blob(blob)


def test_a_missing_blob_is_reported(layout: Layout) -> None:
    layout.add([LAYER], compress=False)
    image = read_layout(layout.folder, architecture="amd64")
    image.layers[0].path.unlink()
    with pytest.raises(InvalidImage, match="lacks the blob"):
        check_blob(image.layers[0])


def test_a_blob_that_is_a_link_to_a_file_of_the_host_is_refused(layout: Layout, tmp_path: Path) -> None:
    layout.add([LAYER], compress=False)
    image = read_layout(layout.folder, architecture="amd64")
    (tmp_path / "elsewhere").write_bytes(image.layers[0].path.read_bytes())
    image.layers[0].path.unlink()
    image.layers[0].path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidImage, match="link out of the layout"):
        read_layout(layout.folder, architecture="amd64")


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{",
        '{"manifests": 1}',
        '{"manifests": []}',
        '{"manifests": [1]}',
        '{"manifests": [{"digest": "md5:x", "size": 1}]}',
        '{"manifests": [{"digest": "sha256:../../../etc/passwd", "size": 1}]}',
        '{"manifests": [{"digest": "sha256:' + "0" * 64 + '", "size": -1}]}',
        '{"manifests": [{"digest": "sha256:' + "0" * 64 + '", "size": 5}]}',
        "[" * 100_000,
    ],
)
def test_malformed_indexes_are_refused(layout: Layout, index: str) -> None:
    (layout.folder / "index.json").write_text(index)
    with pytest.raises(InvalidImage):
        read_layout(layout.folder, architecture="amd64")


def test_the_numbers_of_layers_and_diff_ids_must_be_equal(layout: Layout) -> None:
    layout.add([LAYER], diff_ids=[])
    with pytest.raises(InvalidImage, match="1 layers and 0 in its config"):
        read_layout(layout.folder, architecture="amd64")
