"""A hypervisor that its guest took over cannot change a file that outlives the machine, whoever runs belljar."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from belljar.model.image import Image, Manifest, Part
from belljar.node.machines.host.readonly import ReadOnlyFiles, is_unchangeable

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bwrap", "setpriv", "gcc")), reason="needs bubblewrap, setpriv and gcc"
)
pytestmark = [pytest.mark.process, needs_tools]

USER = 4242
#: What a server's process does, as that user: start a machine of each kind, and say how each ended.
STARTS = """
import asyncio, sys
from pathlib import Path
from belljar.model.image import Image
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings

place = Path(sys.argv[1])
async def main():
    image = Image.model_validate_json((place / "image.json").read_text())
    hypervisor = QemuHypervisor(Settings(data_dir=place / "data", qemu=str(place / "attacker")), "tcg")
    boot = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=64), script_disk=place / "elsewhere" / "script")
    clone = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=64), script_disk=None)
    for machine in (hypervisor.machine(boot), hypervisor.clone(clone, place / "data" / "snapshots" / "one")):
        async with machine as started:
            print((await asyncio.wait_for(started.death(), 60)).message)
asyncio.run(main())
"""


@pytest.fixture
def place(everybodys: Path) -> Path:
    """Everything that hypervisors are handed, owned by the user that belljar runs as."""
    attacker = everybodys / "attacker"
    subprocess.run(["gcc", "-static", "-o", attacker, Path(__file__).with_name("attacker.c")], check=True, timeout=60)
    parts = everybodys / "data" / "images" / "parts"
    for folder in (parts, everybodys / "data" / "snapshots" / "one", everybodys / "elsewhere"):
        folder.mkdir(parents=True)
    for file in kept_files(everybodys):
        file.write_bytes(b"good" * 4096)
        file.chmod(0o444)
    part = Part(sha256="0" * 64, size_bytes=0, origin="")
    manifest = Manifest(name="x", architecture="x", digest="0", languages=(), kernel=part, initramfs=part, root=part)
    image = Image(manifest=manifest, kernel=parts / "kernel", initramfs=parts / "initramfs", root=parts / "root")
    (everybodys / "image.json").write_text(image.model_dump_json())
    return everybodys


def kept_files(place: Path) -> list[Path]:
    parts = [place / "data" / "images" / "parts" / name for name in ("kernel", "initramfs", "root")]
    return [
        *parts,
        *(place / "data" / "snapshots" / "one" / name for name in ("memory", "state")),
        place / "elsewhere" / "script",
    ]


def look(place: Path) -> list[object]:
    """What every later machine would see of those files, with what tells that they were touched."""
    states = [(path, path.stat()) for path in kept_files(place)]
    return [
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest(), state.st_mode, state.st_mtime_ns, state.st_ctime_ns)
        for path, state in states
    ]


@pytest.mark.parametrize("as_root", [pytest.param(True, marks=pytest.mark.root), False])
def test_a_taken_over_hypervisor_changes_no_file_of_any_other_machine(place: Path, as_root: bool) -> None:
    argv: list[str] = []
    if os.geteuid() == 0 and not as_root:
        argv = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
        for path in (place, *place.rglob("*")):
            os.lchown(path, USER, USER)
        may = subprocess.run([*argv, sys.executable, "-c", "import belljar"], capture_output=True, timeout=60, cwd="/")
        if may.returncode != 0:
            pytest.skip("the code cannot be read by other users")
    before = look(place)
    run = subprocess.run(
        [*argv, sys.executable, "-c", STARTS, place], capture_output=True, text=True, timeout=120, cwd="/"
    )
    assert run.returncode == 0, run.stderr
    boot, clone = [line for line in run.stdout.splitlines() if line.startswith("QEMU failed")]
    assert "tried 4 files, changed" in boot and "tried 4 files, changed" in clone
    assert look(place) == before
    assert boot.endswith("changed 0")


def test_a_file_is_found_below_links_and_after_its_folder_was_replaced(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    data.mkdir()
    (data / "images").symlink_to(elsewhere)
    (elsewhere / "root").write_bytes(b"one")
    files = ReadOnlyFiles(data, own_user=True)

    def read() -> bytes:
        descriptor = files.open(data / "images" / "root")
        with os.fdopen(descriptor, "rb") as file:
            assert is_unchangeable(descriptor)
            with pytest.raises(OSError, match="Read-only"):
                os.fchmod(descriptor, 0o666)
            return file.read()

    assert read() == b"one"
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    (elsewhere / "root").write_bytes(b"two")
    assert read() == b"two"
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        files.open(data / "nothing")
    files.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_what_lies_in_the_working_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper is Python, which by default imports from where it is started."""
    for name in ("socket.py", "ctypes.py", "json.py"):
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    (tmp_path / "belljar").mkdir()
    (tmp_path / "belljar" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    os.close(ReadOnlyFiles(data, own_user=True).open(data / "file"))
    assert not (tmp_path / "ran").exists()
