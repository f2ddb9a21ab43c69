"""What a script needs: installed by pip in a machine, packed, kept, and found by the script that runs on top of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from belljar.errors import LayerBuildError
from belljar.guest.session import Command
from belljar.images.catalog import Images
from belljar.images.layers import Layers, Lock, Locked, read_lock
from belljar.machines.choose import Chooser
from belljar.machines.protocol import MachineSpec, Shape
from belljar.scripts.dependencies import Dependencies, requirements_file
from belljar.scripts.pack import pack_tree
from belljar.settings import load_settings
from belljar.worker.attempt import AttemptPlan, run_attempt
from belljar.worker.builder import LAYER_ENV, BuilderLimits, build_layer, builder_plan, lay_under, pack_builder
from images.layouts import archive, entry, folder, link
from worker.agent_process import Listener

LOCK = Lock(kind="pypi", root="0" * 64, packages=(Locked(name="six", version="1.16"),))
OFFLINE = "[global]\nno-index = true\nfind-links = /work/wheels\n"


def wheel(place: Path, name: str, version: str, source: str, requires: str = "") -> Path:
    """A wheel made by hand (PEP 427)."""
    path = place / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}/__init__.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},sha256={_digest(text)},{len(text.encode())}" for path, text in files.items()]
    with zipfile.ZipFile(path, "w") as out:
        for member, text in files.items():
            out.writestr(member, text)
        out.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def wish(text: str) -> Dependencies:
    found = requirements_file(text)
    assert found is not None
    return found


async def keep(layers: Layers, tmp_path: Path, data: bytes, key: str = "k", lock: Lock = LOCK) -> Path:
    path = tmp_path / "layer.tar"
    path.write_bytes(data)
    return (await layers.keep(key, lock, path, max_bytes=1 << 20, max_files=10)).disk


@pytest.mark.vm
async def test_a_layer_is_found_by_what_was_wished_and_shared_by_what_was_locked(tmp_path: Path) -> None:
    layers = Layers(tmp_path)
    assert layers.find("k", LOCK.root) is None
    disk = await keep(layers, tmp_path, archive(folder("six"), entry("six/__init__.py", b"x")))
    found = layers.find("k", LOCK.root)
    assert found is not None and (found.disk, found.lock) == (disk, LOCK)
    assert layers.find("k", "1" * 64) is None
    assert await keep(layers, tmp_path, b"not even looked at", key="another wish") == disk
    assert layers.trim(0) > 0
    assert layers.find("k", LOCK.root) is None and layers.find("another wish", LOCK.root) is None


@pytest.mark.vm
@pytest.mark.parametrize(
    "data",
    [
        archive(entry("../x", b"1")),
        archive(link("way", "/"), entry("/etc/x", b"1")),
        archive(entry("big", bytes(2 << 20))),
        archive(*(entry(f"f{number}") for number in range(20))),
        b"no archive",
    ],
)
async def test_a_hostile_archive_keeps_nothing(tmp_path: Path, data: bytes) -> None:
    layers = Layers(tmp_path)
    with pytest.raises(LayerBuildError):
        await keep(layers, tmp_path, data)
    assert layers.find("k", LOCK.root) is None
    assert [path for path in layers.folder.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "report", [b"", b"{}", b"[]", b'{"install": [1]}', b'{"install": [{"metadata": {"name": 1}}]}']
)
def test_a_report_that_is_none_is_refused(report: bytes) -> None:
    with pytest.raises(LayerBuildError):
        read_lock(report, "pypi", "0" * 64)


def test_a_lock_does_not_depend_on_the_order_of_the_report() -> None:
    packages = [{"metadata": {"name": name, "version": "1"}} for name in ("a", "b")]
    one = read_lock(json.dumps({"install": packages}).encode(), "pypi", "0" * 64)
    two = read_lock(json.dumps({"install": packages[::-1]}).encode(), "pypi", "0" * 64)
    assert one.digest == two.digest


async def test_what_cannot_be_installed_yet_is_told(tmp_path: Path) -> None:
    npm = Dependencies(kind="npm", requirements=("left-pad@1",), origin="package.json")
    with pytest.raises(LayerBuildError, match="npm cannot be installed yet"):
        await pack_builder(npm, tmp_path / "disk")


@pytest.mark.vm
async def test_pip_installs_in_a_machine_and_the_script_imports_it(built_images: Path, tmp_path: Path) -> None:
    """Without a network: the wheels are on the builder's disk. The second wish resolves nothing."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    settings = load_settings(data_dir=data_dir, accelerator="tcg")
    image, layers, limits = Images(data_dir).get("python"), Layers(data_dir), BuilderLimits(disk_mb=256, memory_mb=512)
    hypervisor = await Chooser(settings).hypervisor(image)
    wheels = [
        wheel(tmp_path, "greeting", "1.2", "from inner import word\n", requires="inner>=2"),
        wheel(tmp_path, "inner", "2.0", "word = 'hello from a layer'\n"),
    ]

    async def build(dependencies: Dependencies, name: str) -> None:
        work = tmp_path / name
        work.mkdir()
        await pack_builder(dependencies, work / "disk.erofs", pip_conf=OFFLINE, wheels=wheels)
        plan = builder_plan(image, work / "disk.erofs", None, limits, settings)
        await build_layer(dependencies, plan, hypervisor, layers, work, asyncio.Event(), limits)

    wanted = wish("greeting")
    await build(wanted, "one")
    layer = layers.find(wanted.key, image.manifest.root.sha256)
    assert layer is not None
    assert [(each.name, each.version) for each in layer.lock.packages] == [("greeting", "1.2"), ("inner", "2.0")]

    with pytest.raises(LayerBuildError, match=r"requirements.txt: .*nothing-like-this"):
        await build(wish("nothing-like-this"), "two")

    script = tmp_path / "script"
    script.mkdir()
    (script / "main.py").write_text("import greeting\nprint(greeting.word)\n")
    await pack_tree(script, tmp_path / "script.erofs")
    await lay_under(tmp_path / "script.erofs", layer, tmp_path / "both.erofs")
    listener = Listener()
    plan = AttemptPlan(
        machine=MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=256), script_disk=tmp_path / "both.erofs"),
        command=Command(argv=["python3", "/work/main.py"], env={"PATH": "/usr/bin", **LAYER_ENV}),
        stdin=b"",
        timeout_seconds=60,
        grace_seconds=1,
        boot_timeout_seconds=60,
        artifacts=("**",),
        max_artifact_bytes=1 << 20,
        max_artifact_count=10,
    )
    end = await run_attempt(plan, hypervisor, listener, asyncio.Event())
    assert end.exited is not None and end.exited.exit_code == 0, bytes(listener.stderr)
    assert bytes(listener.stdout) == b"hello from a layer\n"
    assert [path for path in listener.files if "pycache" not in path] == []
