"""A host without QEMU, mmdebstrap or bubblewrap: one line that says what to install."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.command import belljar, complaint
from support.registered_images import register

TOOLS = ("sh", "ldd", "bwrap", "setpriv", "mkfs.erofs", "mkfs.ext4", "qemu-system-x86_64", "apt-get", "dpkg-deb")

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture
def without(tmp_path: Path) -> object:
    """PATH of a folder in which one of the tools is missing."""

    def path(missing: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            if tool != missing:
                if found is None:
                    pytest.skip(f"{tool} is not installed")
                (folder / tool).symlink_to(found)
        return str(folder)

    return path


@pytest.mark.parametrize(("tool", "package"), [("qemu-system-x86_64", "qemu-system-x86"), ("bwrap", "bubblewrap")])
def test_a_job_cannot_run_and_the_package_is_named(tmp_path: Path, without: object, tool: str, package: str) -> None:
    register(tmp_path, "python")
    (tmp_path / "a.py").write_text("print(1)")
    result = belljar(
        "run",
        str(tmp_path / "a.py"),
        data_dir=tmp_path,
        PATH=without(tool),  # type: ignore[operator]
        BELLJAR_ACCELERATOR="tcg",
    )
    assert f"{tool} not found; install with: apt-get install {package}" in complaint(result, 125)
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == []


def test_a_qemu_that_the_settings_name_and_is_not_there(tmp_path: Path) -> None:
    register(tmp_path, "python")
    (tmp_path / "a.py").write_text("print(1)")
    given = {"BELLJAR_QEMU": "/opt/qemu/no-such", "BELLJAR_ACCELERATOR": "tcg"}
    assert "/opt/qemu/no-such not found" in complaint(
        belljar("run", str(tmp_path / "a.py"), data_dir=tmp_path, **given), 125
    )


def test_an_image_cannot_be_built_on_a_host_without_debians_tools(tmp_path: Path) -> None:
    result = belljar("image", "build", "python", data_dir=tmp_path, PATH="/nonexistent")
    text = complaint(result, 1)
    assert "neither Debian nor Ubuntu" in text and "docs/images.md" in text
    assert not (tmp_path / "images").exists() or list((tmp_path / "images").glob("*.json")) == []


def test_doctor_names_the_packages(tmp_path: Path, without: object) -> None:
    result = belljar("doctor", "--json", data_dir=tmp_path, PATH=without("qemu-system-x86_64"))  # type: ignore[operator]
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["qemu-system-x86_64"]["level"] == checks["mmdebstrap"]["level"] == "fail"
    assert checks["qemu-system-x86_64"]["fix"] == "apt-get install qemu-system-x86"
    assert checks["bwrap"]["level"] == "ok"
