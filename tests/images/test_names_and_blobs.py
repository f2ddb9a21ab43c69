"""Names, tags and digests of images; which files are deleted; detection of damage."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from belljar.images.build import manifest_digest
from belljar.images.build_context import build_dir
from belljar.images.catalog import Images, summary
from belljar.images.sbom import bill_of_materials
from belljar.model.errors import DamagedImage, DiskBudget, InvalidOption, UnknownImage
from belljar.model.image import Image, Language, Manifest, Part
from belljar.settings import Settings
from support.silent_progress import SilentProgress

PYTHON = Language(name="python", run=("python3", "{entrypoint}"), version=("python3", "--version"))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


def part(images: Images, text: str) -> Part:
    data = text.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    images.blobs.folder.mkdir(parents=True, exist_ok=True)
    (images.blobs.folder / sha256).write_bytes(data)
    return Part(sha256=sha256, size_bytes=len(data), origin=text)


def make(images: Images, name: str, root: str = "root", language: Language = PYTHON) -> Image:
    manifest = Manifest(
        name=name,
        architecture="x86_64",
        digest="",
        kernel=part(images, "kernel"),
        initramfs=part(images, "initramfs"),
        root=part(images, root),
        languages=(language,),
        packages={"python3": "3.11.2-1+b1"},
        other_packages={"pypi": {"numpy": "2.1.0"}, "npm": {"@a/b": "1.0.0"}, "apk": {"musl": "1.2"}},
        versions={"python": "Python 3.11.2"},
    )
    return images.register(manifest.model_copy(update={"digest": manifest_digest(manifest)}))


def parts(images: Images) -> int:
    return len(list(images.blobs.folder.iterdir()))


def test_an_image_is_found_by_name_tag_and_digest(images: Images) -> None:
    made = make(images, "one")
    images.tag("one", "one:stable")
    digest = made.manifest.digest
    for reference in ("one", "one:latest", "one:stable", f"one@sha256:{digest}", f"sha256:{digest[:12]}"):
        assert images.get(reference).manifest.digest == digest, reference
    assert [image.name for image in images.list()] == ["one", "one:stable"]


@pytest.mark.parametrize("reference", ["", "../one", "one/..", "ONE", "one:", "one@sha256:xyz", "@sha256:", "a" * 200])
def test_an_invalid_reference_finds_nothing(images: Images, reference: str) -> None:
    make(images, "one")
    with pytest.raises(UnknownImage):
        images.get(reference)


def test_a_tag_stays_when_the_name_refers_to_another_image(images: Images) -> None:
    old = make(images, "one")
    images.tag("one", "one:old")
    new = make(images, "one", "newer root")
    assert images.get("one").manifest.digest == new.manifest.digest
    assert images.get("one:old").manifest.digest == old.manifest.digest


@pytest.mark.parametrize("name", ["", "a b", "A", "one@sha256:" + "0" * 64, "x:y:z", "../x"])
def test_an_invalid_tag_is_refused(images: Images, name: str) -> None:
    make(images, "one")
    with pytest.raises(InvalidOption):
        images.tag("one", name)


def test_a_job_gets_the_image_of_its_submission(images: Images) -> None:
    old = make(images, "one")
    make(images, "one", "newer root")
    assert images.get_for_job("one", old.manifest.digest).root == old.root
    assert images.get_for_job("one", "0" * 64).manifest.digest == images.get("one").manifest.digest


def test_images_of_jobs_are_not_collected(images: Images) -> None:
    old = make(images, "one")
    make(images, "one", "newer root")
    assert [manifest.digest for manifest in images.unnamed()] == [old.manifest.digest]
    assert images.collect({old.manifest.digest}) == 0
    assert images.get_for_job("one", old.manifest.digest).root.read_text() == "root"
    assert images.collect() == len("root")
    assert parts(images) == 3 and images.unnamed() == ()


def test_removing_a_name_keeps_images_of_other_names_and_jobs(images: Images) -> None:
    one = make(images, "one")
    make(images, "two", "another root")
    images.remove("one", needed={one.manifest.digest})
    with pytest.raises(UnknownImage):
        images.get("one")
    assert images.get_for_job("one", one.manifest.digest).root.exists()
    images.collect()
    assert not one.root.exists() and images.get("two").kernel.exists()


def test_removing_by_digest_is_refused(images: Images) -> None:
    digest = make(images, "one").manifest.digest
    with pytest.raises(InvalidOption, match="name or tag"):
        images.remove(f"one@sha256:{digest}")


def test_a_damaged_part_is_detected_and_an_unchanged_one_is_not_read_again(images: Images) -> None:
    made = make(images, "one")
    images.verify(made)
    before = {path.name: path.stat().st_atime_ns for path in images.blobs.folder.iterdir()}
    images.verify(made)
    assert {path.name: path.stat().st_atime_ns for path in images.blobs.folder.iterdir()} == before
    time.sleep(0.01)
    made.root.write_text("toor")
    with pytest.raises(DamagedImage, match="has changed since it was built"):
        images.verify(made)


def test_a_parts_owner_cannot_hide_a_change_by_resetting_times(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)  # as root hard links change the ctime
    made = make(images, "one")
    images.verify(made)
    before = made.root.stat()
    time.sleep(0.01)
    made.root.write_bytes(b"evil"[: before.st_size].ljust(before.st_size))
    os.utime(made.root, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made.root.stat().st_mtime_ns == before.st_mtime_ns and made.root.stat().st_size == before.st_size
    with pytest.raises(DamagedImage, match="has changed since it was built"):
        Images(images.data_dir).verify(made)


def test_the_disk_budget_drops_cached_packages_first(images: Images) -> None:
    make(images, "one")
    debs = images.data_dir / "cache" / "apt" / "bookworm-amd64" / "debs"
    debs.mkdir(parents=True)
    (debs / "a.deb").write_bytes(bytes(300 << 20))
    images.blobs.make_room(1 << 20, Settings(image_disk_mb=256))
    assert not (debs / "a.deb").exists()
    with pytest.raises(DiskBudget):
        images.blobs.make_room(300 << 20, Settings(image_disk_mb=256))


def test_the_summary_has_versions_size_and_digest(images: Images) -> None:
    made = make(images, "one")
    shown = summary(made)
    assert shown["digest"] == made.manifest.digest and shown["size_bytes"] == made.manifest.size_bytes
    assert shown["languages"][0]["version"] == "Python 3.11.2"  # type: ignore[index]
    assert shown["snapshots"] == []


def test_a_bill_of_materials_has_every_package(images: Images) -> None:
    made = make(images, "one")
    bill = bill_of_materials(made.manifest)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    urls = [component["purl"] for component in bill["components"] if "purl" in component]
    assert urls == [
        "pkg:deb/debian/python3@3.11.2-1%2Bb1?arch=amd64",
        "pkg:apk/alpine/musl@1.2",
        "pkg:npm/%40a/b@1.0.0",
        "pkg:pypi/numpy@2.1.0",
    ]
    hashes = {component["hashes"][0]["content"] for component in bill["components"] if "hashes" in component}
    assert hashes == {each.sha256 for each in made.manifest.parts}
    assert bill == bill_of_materials(made.manifest)


def test_nothing_is_deleted_during_a_build(images: Images) -> None:
    with build_dir(images.data_dir, SilentProgress()):
        made = part(images, "half an image")
        assert images.collect() == 0
        assert (images.blobs.folder / made.sha256).exists()
    assert images.collect() == len("half an image")
