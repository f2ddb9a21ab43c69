"""Images built by an ordinary user: in a user namespace with subordinate ids; without them, the command for root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from support.oci_layouts import archive, entry, folder, new_layout
from support.paths import ROOT

pytestmark = pytest.mark.root

RECIPE = """
name = "tiny"
packages = ["procps"]

[[languages]]
name = "shell"
run = ["sh", "{entrypoint}"]
"""
CODE = ROOT


@pytest.fixture
def place(own_images: Path, everybodys: Path) -> Path:
    """A data folder with the built images' kernel, and a container image, in a place that any user may enter."""
    data = everybodys / "data"
    shutil.copytree(own_images / "images", data / "images")
    shutil.copytree(own_images / "cache" / "notes", data / "cache" / "notes")
    layout = new_layout(everybodys / "layout")
    members = [folder("srv", uid=33, gid=33, mode=0o700), entry("srv/own", b"x", uid=33, gid=34, mode=0o600)]
    layout.add([archive(folder("bin"), entry("bin/tool", b"\x7fELF", mode=0o755), *members)], {"User": "33"})
    return everybodys


def own(place: Path, uid: int, gid: int) -> None:
    for path in (place, *place.rglob("*")):
        os.lchown(path, uid, gid)


def belljar(place: Path, user: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", *user, "--", sys.executable, "-m", "belljar", *arguments, "--data-dir", str(place / "data")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(place), "BELLJAR_SNAPSHOTS": "off"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd="/")


def may_run_the_code(user: tuple[str, ...]) -> bool:
    look = ["setpriv", *user, "--", sys.executable, "-c", "import belljar"]
    return subprocess.run(look, capture_output=True, timeout=60, cwd="/").returncode == 0


@pytest.fixture
def user() -> Iterator[tuple[str, int]]:
    """Create a user of this host with subordinate ids for the duration of the test."""
    name = f"belljar-{os.getpid()}"
    if not shutil.which("useradd"):
        pytest.skip("useradd (passwd) is not installed")
    made = subprocess.run(["useradd", "--no-create-home", "--user-group", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    try:
        uid = int(subprocess.run(["id", "-u", name], check=True, capture_output=True, text=True).stdout)
        yield name, uid
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


def test_an_ordinary_user_imports_an_image_with_files_of_other_owners(place: Path, user: tuple[str, int]) -> None:
    name, uid = user
    setpriv_options = (f"--reuid={name}", f"--regid={name}", "--init-groups")
    if not may_run_the_code(setpriv_options):
        pytest.skip(f"{CODE} cannot be read by other users")
    own(place, uid, uid)
    done = belljar(place, setpriv_options, "image", "import", str(place / "layout"), "--name", "tiny")
    assert done.returncode == 0, done.stderr
    root = max((place / "data" / "images" / "parts").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    command = ["dump.erofs", "--path=/srv/own", str(root)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert "Uid: 33" in listed and "Gid: 34" in listed
    assert not list((place / "data" / "cache").glob("build-*"))


def test_an_ordinary_user_builds_an_image_in_a_private_folder(
    place: Path, own_images: Path, user: tuple[str, int]
) -> None:
    name, uid = user
    setpriv_options = (f"--reuid={name}", f"--regid={name}", "--init-groups")
    if not may_run_the_code(setpriv_options):
        pytest.skip(f"{CODE} cannot be read by other users")
    shutil.copytree(own_images / "cache/apt", place / "data/cache/apt")  # so that little is fetched again
    (place / "data/recipes").mkdir()
    (place / "data/recipes/tiny.toml").write_text(RECIPE)
    own(place, uid, uid)
    for closed in (place / "data", place / "data/cache"):
        closed.chmod(0o700)
    done = belljar(place, setpriv_options, "image", "build", "tiny")
    assert done.returncode == 0, done.stderr
    image = Images(place / "data").get("tiny")
    command = ["dump.erofs", "--path=/usr/bin/su", str(image.root)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    assert "Uid: 0" in listed and "Gid: 0" in listed
    assert image.root.stat().st_uid == uid
    assert not list((place / "data/cache").glob("build-*"))


def test_a_tools_reason_is_reported(place: Path, user: tuple[str, int]) -> None:
    name, uid = user
    setpriv_options = (f"--reuid={name}", f"--regid={name}", "--init-groups")
    if not may_run_the_code(setpriv_options):
        pytest.skip(f"{CODE} cannot be read by other users")
    (place / "data/recipes").mkdir()
    (place / "data/recipes/tiny.toml").write_text(RECIPE.replace('"procps"', '"procps", "no-such-package"'))
    own(place, uid, uid)
    done = belljar(place, setpriv_options, "image", "build", "tiny")
    assert done.returncode != 0
    assert "E: Unable to locate package no-such-package" in done.stderr


def test_a_user_without_ids_gets_the_command_for_root(place: Path) -> None:
    setpriv_options = ("--reuid=64001", "--regid=64001", "--clear-groups")
    if not may_run_the_code(setpriv_options):
        pytest.skip(f"{CODE} cannot be read by other users")
    own(place, 64001, 64001)
    done = belljar(place, setpriv_options, "image", "import", str(place / "layout"), "--name", "tiny")
    assert done.returncode != 0
    (last,) = done.stderr.splitlines()[-1:]
    assert last.startswith("belljar: ") and "usermod --add-subuids" in last and "Traceback" not in done.stderr
    assert not (place / "data" / "images" / "tiny.json").exists()
    assert not list((place / "data" / "cache").glob("build-*"))
