"""Imported images in real machines: USER, WORKDIR, ENV and ENTRYPOINT, without a shell and /etc/passwd."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from belljar.images.build import build_image
from belljar.images.catalog import Images
from belljar.images.recipe_extension import RecipeExtension
from belljar.settings import load_settings
from support.oci_layouts import archive, entry, folder, link, new_layout
from support.silent_progress import SilentProgress

pytestmark = pytest.mark.vm

RECIPE = """
name = "calculator"
packages = ["bc"]

[[files]]
path = "/usr/local/bin/calculate"
executable = true
text = '''
#!/bin/sh
echo "$GREETING"
exec bc -q "$1"
'''

[env]
GREETING = "from a recipe"

[[languages]]
name = "calc"
extensions = [".calc"]
run = ["calculate", "{entrypoint}"]
version = ["bc", "--version"]
hello = "1"
"""
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    char place[512];
    printf("%d:%d in %s MODE=%s\n", getuid(), getgid(), getcwd(place, sizeof place), getenv("MODE"));
    for (int i = 0; i < argc; i++)
        printf("%s\n", argv[i]);
    return 3;
}
"""


def belljar(image_dir: Path, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "belljar", *arguments]
    environment = {**os.environ, "BELLJAR_DATA_DIR": str(image_dir), "BELLJAR_ACCELERATOR": "tcg"}
    environment["BELLJAR_SNAPSHOTS"] = "off"  # each image is booted once
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, **more)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static executable: all that is in a distroless image of the smallest kind."""
    place = tmp_path_factory.mktemp("program")
    (place / "main.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-O1", "-o", place / "main", place / "main.c"], check=True, timeout=60)
    return (place / "main").read_bytes()


def test_a_scratch_image_runs_its_entrypoint_and_executables(image_dir: Path, tmp_path: Path, program: bytes) -> None:
    """No /bin/sh, no /etc/passwd, no /proc, no /dev in it."""
    layout = new_layout(tmp_path / "layout")
    config = {"Entrypoint": ["/app"], "Cmd": ["serve"], "User": "1234:77", "WorkingDir": "/srv", "Env": ["MODE=image"]}
    layout.add([archive(entry("app", program, mode=0o755))], config)
    imported = belljar(image_dir, "image", "import", str(layout.folder), "--name", "scratchy")
    assert imported.returncode == 0, imported.stderr
    (tmp_path / "notes.txt").write_text("data for it")
    own = belljar(image_dir, "run", str(tmp_path / "notes.txt"), "--image", "scratchy", "--language", "command")
    assert (own.returncode, own.stdout) == (3, "1234:77 in /srv MODE=image\n/app\nserve\n"), own.stderr
    (tmp_path / "mine").write_bytes(program)
    mine = belljar(
        image_dir, "run", str(tmp_path / "mine"), "--image", "scratchy", "--env", "MODE=job", "--", "a", "b c"
    )
    assert (mine.returncode, mine.stdout) == (3, "1234:77 in /srv MODE=job\n/work/mine\na\nb c\n"), mine.stderr


def test_an_image_with_a_busybox_runs_shell_scripts(image_dir: Path, tmp_path: Path) -> None:
    """Like Alpine: no bash, no Debian, /bin full of links; and a user by name."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("busybox-static is not installed; script/bootstrap --dev does it")
    layout = new_layout(tmp_path / "layout")
    links = [link(f"bin/{name}", "/bin/busybox") for name in ("sh", "cat", "id", "pwd", "ls")]
    members = [
        folder("bin"),
        entry("bin/busybox", busybox.read_bytes(), mode=0o755),
        *links,
        entry("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:500:501::/app:/bin/sh\n"),
        entry("lib/apk/db/installed", b"P:musl\nV:1.2.4\n"),
    ]
    layout.add([archive(*members), archive(entry("app/data", b"from the image\n", uid=500))], {"User": "app"})
    imported = belljar(image_dir, "image", "import", str(layout.folder), "--name", "alpinish", "--json")
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["other_packages"] == {"apk": {"musl": "1.2.4"}}
    (tmp_path / "look.sh").write_text('id -u; pwd; cat /app/data; echo "$1"; echo note > note.txt; exit 7\n')
    done = belljar(
        image_dir,
        *("run", str(tmp_path / "look.sh"), "--image", "alpinish", "--artifacts", str(tmp_path / "out")),
        *("--", "an argument"),
    )
    assert (done.returncode, done.stdout) == (7, "500\n/work\nfrom the image\nan argument\n"), done.stderr
    assert (tmp_path / "out" / "note.txt").read_text() == "note\n"


def test_an_extended_recipe(own_images: Path, tmp_path: Path) -> None:
    """Debian's, and a wheel of the index that pip is set to use; what is in it is listed."""
    settings = load_settings(data_dir=own_images)
    extension = RecipeExtension(base="python", apt=("jq",), pip=("six",))
    try:
        image = asyncio.run(build_image("science", settings, SilentProgress(), extension=extension))
        assert image.manifest.packages["jq"]
        assert image.manifest.other_packages["pypi"]["six"]
        (tmp_path / "use.py").write_text(
            "import six, subprocess\nprint(six.__name__, six.__cached__)\n"
            "print(subprocess.run(['jq', '-n', '1+1'], capture_output=True, text=True).stdout)\n"
        )
        done = belljar(own_images, "run", str(tmp_path / "use.py"), "--image", "science")
        assert (done.returncode, done.stdout.split()[-1]) == (0, "2"), done.stderr
        listed = json.loads(belljar(own_images, "image", "sbom", "science").stdout)
        urls = [component.get("purl", "") for component in listed["components"]]
        assert any(url.startswith("pkg:pypi/six@") for url in urls)
        assert any(url.startswith("pkg:deb/debian/jq@") for url in urls)
    finally:
        if Images(own_images).find("science"):
            Images(own_images).remove("science")


def test_a_recipe_in_the_data_folder_works_like_a_built_in_one(own_images: Path, tmp_path: Path) -> None:
    """Built by its name, listed, chosen by a file's ending, and removed."""
    recipes = own_images / "recipes"
    recipes.mkdir(exist_ok=True)
    recipe = recipes / "calculator.toml"
    recipe.write_text(RECIPE)
    try:
        built = belljar(own_images, "image", "build", "calculator", "--json")
        assert built.returncode == 0, built.stderr
        assert json.loads(built.stdout)["packages"]["bc"]
        (tmp_path / "sum.calc").write_text("2 ^ 70\n")
        done = belljar(own_images, "run", str(tmp_path / "sum.calc"))
        assert (done.returncode, done.stdout) == (0, "from a recipe\n1180591620717411303424\n"), done.stderr
        listed = json.loads(belljar(own_images, "image", "languages", "--json").stdout)
        assert any("calc" in each.values() for each in listed)
    finally:
        recipe.unlink()
        if Images(own_images).find("calculator"):
            Images(own_images).remove("calculator")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--apt", "no-such-package-anywhere"), "no-such-package-anywhere"),
        (("--pip", "no-such-package-anywhere==1.2.3"), "no-such-package-anywhere"),
    ],
)
def test_a_package_that_does_not_exist_is_named_and_nothing_is_left(
    own_images: Path, options: tuple[str, ...], message: str
) -> None:
    before = sorted((own_images / "images").rglob("*"))
    done = belljar(own_images, "image", "build", "broken", "--from", "python", *options)
    assert done.returncode != 0 and message in done.stderr.splitlines()[-1]
    assert sorted((own_images / "images").rglob("*")) == before
    assert not list((own_images / "cache").glob("build-*/"))


def test_a_second_build_changes_nothing(own_images: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (own_images / "images" / "parts").iterdir()}
    digest = Images(own_images).get("python").manifest.digest
    done = belljar(own_images, "image", "build", "python", "--json")
    assert json.loads(done.stdout)["digest"] == digest
    assert {path: path.stat().st_mtime_ns for path in (own_images / "images" / "parts").iterdir()} == before


def test_versions_are_recorded_by_the_build(own_images: Path) -> None:
    listed = json.loads(belljar(own_images, "image", "ls", "--json").stdout)
    versions = {
        language["name"]: language["version"]
        for image in listed
        if image["name"] == "python"
        for language in image["languages"]
    }
    assert versions["python"].startswith("Python 3.") and "bash" in versions["shell"]


def test_an_image_that_a_queued_job_needs_is_not_collected(image_dir: Path) -> None:
    """Through the real database: a job is queued, its image's name goes, and the job still finds the image."""
    from belljar.control.api.services import open_services
    from belljar.model.job_options import JobRequest

    settings = load_settings(data_dir=image_dir)

    async def submit() -> tuple[str, str]:
        async with open_services(settings) as services:
            job = await services.jobs.submit("p", JobRequest(code="echo hi", language="shell", image="shell"))
            assert job.image_digest is not None
            return job.id, job.image_digest

    async def cancel(job_id: str) -> None:
        async with open_services(settings) as services:
            await services.jobs.cancel("p", job_id)

    job_id, digest = asyncio.run(submit())
    assert belljar(image_dir, "image", "rm", "shell").returncode == 0
    images = Images(image_dir)
    assert images.find("shell") is None
    assert images.get_for_job("shell", digest).root.is_file()
    asyncio.run(cancel(job_id))
    done = belljar(image_dir, "image", "gc", "--json")
    assert json.loads(done.stdout)["freed_bytes"] > 0
    assert images.find(f"sha256:{digest}") is None
