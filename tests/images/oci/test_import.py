"""Importing container images of every kind with the real tools; a failed import leaves nothing."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from belljar.images.catalog import Images
from belljar.images.oci.fetch import default_name, parse_reference
from belljar.images.oci.rootfs import build_from_dockerfile, import_image
from belljar.model.errors import BelljarError, DiskBudget, ImageBuildError, InvalidImage, InvalidOption
from belljar.model.image import Image, User
from belljar.settings import load_settings
from support.image_registry import serving_layout
from support.oci_layouts import Layout, archive, entry, folder, hard_link, link, new_layout
from support.silent_progress import SilentProgress

HELLO = archive(folder("bin"), entry("bin/hello", b"\x7fELF", mode=0o755), entry("etc/os", b"tiny"))


def bring(image_dir: Path, reference: Path | str, name: str | None = None, **more: Any) -> Image:
    settings = load_settings(data_dir=image_dir, **more)
    return asyncio.run(import_image(str(reference), name, settings, SilentProgress()))


def listing(image: Image, path: str = "/") -> str:
    """Return the listing of the root filesystem by dump.erofs."""
    command = ["dump.erofs", f"--path={path}", "--ls", str(image.root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


def left(image_dir: Path) -> list[str]:
    """Everything in the data folder but logs."""
    return sorted(str(path.relative_to(image_dir)) for path in image_dir.rglob("*") if "/logs" not in str(path))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return new_layout(tmp_path / "layout")


def test_a_layout_becomes_an_image(image_dir: Path, layout: Layout) -> None:
    config = {"Entrypoint": ["/bin/hello"], "Env": ["MODE=x"], "WorkingDir": "/srv/app", "User": "12:34"}
    layout.add([HELLO, archive(entry("etc/.wh.os"), entry("etc/new", b"2"))], config)
    image = bring(image_dir, layout.folder, "tiny")
    manifest = image.manifest
    assert (manifest.name, manifest.env, manifest.working_folder) == ("tiny", {"MODE": "x"}, "/srv/app")
    assert manifest.user == User(uid=12, gid=34)
    assert [language.name for language in manifest.languages] == ["binary", "command"]
    assert Images(image_dir).get("tiny").manifest == manifest
    files = listing(image, "/etc")
    assert "new" in files and " os" not in files
    assert "app" in listing(image, "/srv")


def test_the_same_image_is_the_same_bytes_and_is_not_unpacked_again(image_dir: Path, layout: Layout) -> None:
    layout.add([HELLO])
    first = bring(image_dir, layout.folder, "one")
    stamp = first.root.stat().st_mtime_ns
    assert bring(image_dir, layout.folder, "two").manifest.root == first.manifest.root
    assert first.root.stat().st_mtime_ns == stamp
    for note in (image_dir / "cache" / "notes").glob("facts-*"):
        note.unlink()
    again = bring(image_dir, layout.folder, "three")
    assert again.manifest.root.sha256 == first.manifest.root.sha256
    assert again.manifest.digest == first.manifest.digest


HOSTILE = {
    "traversal": archive(entry("../../../../tmp/belljar-was-here", b"1")),
    "absolute name": archive(entry("/tmp/belljar-was-here", b"1")),
    "hard link": archive(hard_link("shadow", "/etc/shadow")),
    "device": archive(entry("sda", type=tarfile.BLKTYPE, devmajor=8)),
    "circle": archive(link("a", "b"), link("b", "a"), entry("a/x", b"1")),
    "bomb": archive(entry("zeros", bytes(100 << 20))),
    "no tar": b"this is no archive" * 100,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_layer_leaves_nothing(image_dir: Path, layout: Layout, kind: str) -> None:
    layout.add([HELLO, HOSTILE[kind]])
    before = left(image_dir)
    with pytest.raises(InvalidImage):
        bring(image_dir, layout.folder, "bad")
    assert Images(image_dir).find("bad") is None
    assert [path for path in left(image_dir) if path not in before and path not in ("cache", "cache/build.lock")] == []
    assert not Path("/tmp/belljar-was-here").exists()


def test_a_layer_of_another_digest_is_refused(image_dir: Path, layout: Layout) -> None:
    layout.add([HELLO], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(InvalidImage, match="does not have the digest that the config declares"):
        bring(image_dir, layout.folder, "bad")


def test_another_architecture_is_refused(image_dir: Path, layout: Layout) -> None:
    layout.add([HELLO], architecture="s390x")
    with pytest.raises(InvalidImage, match="s390x"):
        bring(image_dir, layout.folder, "bad")


def test_an_image_over_the_limits_is_refused(image_dir: Path, layout: Layout) -> None:
    layout.add([archive(entry("x", os.urandom(65 << 20)))])
    with pytest.raises(InvalidImage, match="64 MB"):
        bring(image_dir, layout.folder, "bad", max_image_mb=64)


def test_the_disk_budget_is_enforced(image_dir: Path, layout: Layout) -> None:
    used_mb = Images(image_dir).blobs.disk_bytes() // (1 << 20)
    budget_mb = max(used_mb + 20, 256)
    layout.add([archive(entry("x", os.urandom((budget_mb - used_mb + 20) << 20)))])
    with pytest.raises(DiskBudget, match="image_disk_mb"):
        bring(image_dir, layout.folder, "big", image_disk_mb=budget_mb)
    assert Images(image_dir).find("big") is None


def test_memory_does_not_depend_on_the_size(image_dir: Path, layout: Layout) -> None:
    """300 MB in a few files and in many; the process that unpacks them is the largest child there is."""
    big = [entry(f"big{number}", os.urandom(1 << 20) * 100) for number in range(3)]
    layout.add([archive(*big), archive(*(entry(f"many/{number}", b"x") for number in range(20_000)))], compress=False)
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'belljar', 'image', 'import', *sys.argv[1:]], check=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(layout.folder), "--name", "big", "--data-dir", str(image_dir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert int(done.stdout.split()[-1]) < 200, done.stdout


# --- the real tools -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_archives(image_dir: Path, layout: Layout, tmp_path: Path, kind: str) -> None:
    layout.add([HELLO], {"Env": ["A=1"]}, tag="v1")
    path = tmp_path / "saved.tar"
    target = f"{kind}:{path}:tiny:v1"
    copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout.folder}:v1", target]
    subprocess.run(copy, check=True, timeout=60)
    image = bring(image_dir, path)
    assert (image.name, image.manifest.env) == ("saved", {"A": "1"})
    assert "hello" in listing(image, "/bin")


def test_a_registry(image_dir: Path, layout: Layout) -> None:
    layout.add([HELLO], {"Env": ["A=1"]}, tag="v1")
    with serving_layout(layout.folder, "team/tiny") as registry:
        image = bring(image_dir, f"{registry}/team/tiny:v1")
        assert (image.name, image.manifest.env) == ("tiny", {"A": "1"})
        by_digest = bring(image_dir, f"{registry}/team/tiny@{layout.manifests[0]['digest']}")
        assert by_digest.manifest.root == image.manifest.root
        with pytest.raises(InvalidImage, match="cannot fetch"):
            bring(image_dir, f"{registry}/team/other:v1")


def test_a_layer_that_a_registry_changed_is_refused(image_dir: Path, layout: Layout) -> None:
    layout.add([HELLO], tag="v1", compress=False)
    path = layout.folder / "blobs" / "sha256" / hashlib.sha256(HELLO).hexdigest()
    path.write_bytes(HELLO.replace(b"tiny", b"TINY"))
    with serving_layout(layout.folder, "team/tiny") as registry, pytest.raises(InvalidImage):
        bring(image_dir, f"{registry}/team/tiny:v1")
    assert Images(image_dir).find("tiny") is None


def test_a_dockerfile(image_dir: Path, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "hello").write_bytes(b"\x7fELF")
    (context / "hello").chmod(0o755)
    dockerfile = context / "Dockerfile"
    dockerfile.write_text('FROM scratch\nCOPY hello /bin/hello\nENV A=1\nUSER 5\nENTRYPOINT ["/bin/hello"]\n')
    settings = load_settings(data_dir=image_dir)
    image = asyncio.run(build_from_dockerfile("own", dockerfile, None, settings, SilentProgress()))
    assert (image.manifest.env["A"], image.manifest.user.uid) == ("1", 5)
    assert image.manifest.languages[-1].run == ("/bin/hello",)


def test_a_failing_dockerfile_leaves_nothing(image_dir: Path, tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    (tmp_path / "there").write_text("x")
    dockerfile.write_text("FROM scratch\nCOPY there /x\nCOPY not-there /y\n")
    before = left(image_dir)
    with pytest.raises(ImageBuildError, match="buildah failed"):
        asyncio.run(build_from_dockerfile("own", dockerfile, None, load_settings(data_dir=image_dir), SilentProgress()))
    assert Images(image_dir).find("own") is None
    assert [path for path in left(image_dir) if path not in before and path not in ("cache", "cache/build.lock")] == []


# --- what a reference means -----------------------------------------------------------------------------------------


def test_references(tmp_path: Path) -> None:
    new_layout(tmp_path / "layout").add([HELLO])
    assert parse_reference(str(tmp_path / "layout")).layout == tmp_path / "layout"
    assert parse_reference(f"{tmp_path}/layout:v1").tag == "v1"
    assert parse_reference("localhost:5000/team/app:v1").transport == "docker://localhost:5000/team/app:v1"
    assert parse_reference("docker://alpine").transport == "docker://alpine"
    for wrong in (str(tmp_path), f"{tmp_path}/not-there", "--help", "a b", "$(id)"):
        with pytest.raises((InvalidOption, InvalidImage)):
            parse_reference(wrong)


def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    for name, data in (("a.tar", b"nothing"), ("b.tar", archive(entry("x"))), ("c.gz", gzip.compress(b"x"))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidImage, match="archive"):
            parse_reference(str(tmp_path / name))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("alpine", "alpine"),
        ("alpine:3.19", "alpine"),
        ("localhost:5000/team/app", "app"),
        ("localhost:5000/team/App:v1", "app"),
        ("reg.example/app@sha256:" + hashlib.sha256().hexdigest(), "app"),
        ("/some/where/saved.tar", "saved"),
        ("/some/where/layout/", "layout"),
        ("./layout:v2", "layout"),
        ("docker://alpine", "alpine"),
    ],
)
def test_the_default_name_comes_from_the_reference(reference: str, name: str) -> None:
    assert default_name(reference) == name


def test_an_invalid_name_is_refused(image_dir: Path) -> None:
    with pytest.raises(BelljarError, match="not a valid image name"):
        bring(image_dir, "alpine", "Not A Name")
