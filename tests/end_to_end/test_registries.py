"""`egress: packages` with the real pip and npm against the real registries, where this machine reaches any."""

from __future__ import annotations

import ensurepip
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.internet import host_state
from support.registries import Registry, npm, pypi
from support.running import Server, serving

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.usefixtures("host_network")]

#: `pip` is a folder or a wheel beside the script; what it fetched is then imported.
PIP = """
import glob, os, subprocess, sys
pip = [sys.executable, glob.glob("/work/pip-*.whl")[0] + "/pip", "--cert", "/work/ca.pem", "--no-cache-dir"]
pip += ["install", "--no-compile", "--target", "/tmp/site", sys.argv[1]]
ran = subprocess.run(pip, capture_output=True, text=True)
if ran.returncode:
    sys.exit(ran.stdout + ran.stderr)
sys.path.insert(0, "/tmp/site")
import six
print(six.__version__, six.__file__, "PIP_INDEX_URL" in os.environ)
"""
NPM = """
const { spawnSync } = require("child_process");
const npm = ["/work/npm/package/bin/npm-cli.js", "install", "--prefix", "/tmp/site", "--no-audit", "--no-fund"];
const ran = spawnSync(process.execPath, [...npm, "--cafile", "/work/ca.pem", "--cache", "/tmp/cache", process.argv[2]]);
if (ran.status !== 0) { console.error(String(ran.stdout) + ran.stderr); process.exit(1); }
const isNumber = require("/tmp/site/node_modules/is-number");
console.log(isNumber("7"), require("/tmp/site/node_modules/is-number/package.json").version);
"""


@contextmanager
def mirrored(images: Path, folder: Path, registry: Registry, **environment: str) -> Iterator[Server]:
    """A server whose operator has let jobs reach what this machine itself reaches."""
    data_dir = folder / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(images / "images")
    if private := registry.private():
        environment["BELLJAR_PACKAGE_PRIVATE_NETWORKS"] = json.dumps(private)
    before = host_state()
    environment |= {"BELLJAR_ACCELERATOR": "tcg", "BELLJAR_SNAPSHOTS": "off"}  # it runs one job
    with serving(data_dir, **environment) as server:
        yield server
    assert host_state() == before


def run(server: Server, archive: bytes, **options: Any) -> dict[str, Any]:
    response = server.http.post("/v1/scripts", files={"script": ("package.zip", archive)}, data=options.pop("form", {}))
    assert response.status_code == 201, response.text
    body = {"script_id": response.json()["script_id"], "egress": "packages", "timeout_seconds": 300, **options}
    job: dict[str, Any] = server.http.post("/v1/jobs", json=body).json()
    for _ in range(3):
        job = server.wait(job["id"], 120)
        if job["finished_at"]:
            return job
    raise AssertionError(job)


def zipped(members: dict[str, bytes | str]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()


def pip_wheel() -> Path:
    """The pip that Python itself brings along."""
    folders = [Path(ensurepip.__file__).parent / "_bundled"]
    if getattr(ensurepip, "_WHEEL_PKG_DIR", None):
        folders.insert(0, Path(ensurepip._WHEEL_PKG_DIR))  # type: ignore[attr-defined]
    found = [wheel for folder in folders for wheel in folder.glob("pip-*.whl")]
    if not found:
        pytest.skip("this Python comes without the wheel of pip")
    return found[0]


def test_pip_installs_from_the_real_index(built_images: Path, tmp_path: Path) -> None:
    registry, wheel = pypi(), pip_wheel()
    members: dict[str, bytes | str] = {
        "main.py": PIP,
        "ca.pem": registry.certificates,
        wheel.name: wheel.read_bytes(),
    }
    with mirrored(built_images, tmp_path, registry, BELLJAR_PACKAGE_PYPI_URL=registry.url) as server:
        job = run(server, zipped(members), args=["six==1.16.0"], memory_mb=384)
        assert job["status"] == "succeeded", server.logs(job, stream="all").decode()
        assert server.logs(job).decode() == "1.16.0 /tmp/site/six.py True\n"
        assert job["usage"]["rx_bytes"] > 10_000 and job["network"]["refused_count"] == 0


def test_npm_installs_from_the_real_registry(language_images: Path, tmp_path: Path) -> None:
    registry = npm()
    packed = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(tmp_path), "npm@10"],
        capture_output=True,
        text=True,
        timeout=180,
    )
    if packed.returncode:
        pytest.skip(f"the registry has no npm for the image's Node.js: {packed.stderr[-200:]}")
    members: dict[str, bytes | str] = {"main.js": NPM, "ca.pem": registry.certificates}
    with tarfile.open(tmp_path / packed.stdout.strip()) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                members[f"npm/{member.name}"] = file.read()
    with mirrored(language_images, tmp_path, registry, BELLJAR_PACKAGE_NPM_URL=registry.url) as server:
        job = run(server, zipped(members), args=["is-number@7.0.0"], memory_mb=512)
        assert job["status"] == "succeeded", server.logs(job, stream="all").decode()
        assert server.logs(job).decode() == "true 7.0.0\n"
        assert job["usage"]["rx_bytes"] > 3000 and job["network"]["refused_count"] == 0
