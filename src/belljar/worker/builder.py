"""Installs what a script needs, once, inside a machine of its own, and lays it under the script.

The builder machine runs the image that the job will run, with pip beside it; its egress is the caller's to give (a slot
that reaches the package index and nothing else). What comes out is an archive and a report; both are hostile, and are
checked like any layer of a container image. Nothing here decides when a job needs that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from belljar.errors import DiskFull, HostError, LayerBuildError, MissingTool
from belljar.guest.session import Command
from belljar.guest.wire import Stream
from belljar.images.layers import Layer, Layers, read_lock
from belljar.images.manifest import Image
from belljar.machines.protocol import Hypervisor, MachineSpec, NetworkSlot, Shape
from belljar.scripts.dependencies import Dependencies
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from belljar.worker.attempt import AttemptPlan, Stop, run_attempt
from belljar.worker.output import FolderArtifacts
from belljar.worker.plan import DEFAULT_ENV, WORKING_FOLDER

#: Where a layer lies below the working folder: lower than what the job writes, so that it is no artifact.
LAYER_FOLDER = ".belljar-packages"
#: What a job with a layer has in its environment.
LAYER_ENV = {"PYTHONPATH": f"{WORKING_FOLDER}/{LAYER_FOLDER}"}
_MB = 1024 * 1024
_MAX_LOG_BYTES = 256 * 1024
_MAX_FILES = 100_000
_COMPOSE_SECONDS = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class BuilderLimits:
    memory_mb: int = 1024
    disk_mb: int = 4096
    timeout_seconds: float = 600
    #: Largest archive that a builder may hand over.
    max_layer_mb: int = 1024


@dataclass(slots=True)
class BuildLog:
    """The audience of a builder: its words, bounded, for the user to read."""

    artifacts: FolderArtifacts
    text: bytearray = field(default_factory=bytearray)

    @property
    def output(self) -> BuildLog:
        return self

    async def write(self, stream: Stream, data: bytes) -> None:
        self.text += data[: _MAX_LOG_BYTES - len(self.text)]

    def full(self, stream: Stream) -> bool:
        return len(self.text) >= _MAX_LOG_BYTES

    def started(self) -> None:
        pass

    def console(self, data: bytes, dropped_bytes: int) -> None:
        pass

    def words(self) -> str:
        """All that pip said."""
        return self.text.decode(errors="replace")


async def pack_builder(
    dependencies: Dependencies, disk: Path, *, pip_conf: str = "", wheels: Iterable[Path] = ()
) -> None:
    """Pack a builder's script disk: pip, the requirements, and how to reach the index. `wheels` are laid beside them.

    Raises LayerBuildError for a kind that cannot be installed yet, MissingTool without pip, DiskFull.
    """
    if dependencies.kind != "pypi":
        raise LayerBuildError(
            f"{dependencies.origin}: packages of npm cannot be installed yet; put node_modules into it"
        )
    pip = importlib.util.find_spec("pip")
    if pip is None or pip.origin is None:
        raise MissingTool("pip is not installed beside belljar; run: python -m ensurepip")
    tree = disk.with_suffix(".tree")
    installer = Path(__file__).with_name("install_pypi.py")

    def lay() -> None:
        (tree / "wheels").mkdir(parents=True)
        assert pip.origin is not None
        ignored = shutil.ignore_patterns("__pycache__", "*.exe")
        shutil.copytree(Path(pip.origin).parent, tree / "tools" / "pip", ignore=ignored)
        shutil.copyfile(installer, tree / installer.name)
        (tree / "requirements.txt").write_text("".join(f"{each}\n" for each in dependencies.requirements))
        (tree / "pip.conf").write_text(pip_conf)
        for wheel in wheels:
            shutil.copyfile(wheel, tree / "wheels" / wheel.name)

    try:
        await asyncio.to_thread(lay)
        await pack_tree(tree, disk)
    except OSError as error:
        raise DiskFull(f"no room left to prepare what the script needs: {error.strerror}") from error
    finally:
        await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)


def builder_plan(
    image: Image, disk: Path, slot: NetworkSlot | None, limits: BuilderLimits, settings: Settings
) -> AttemptPlan:
    """What a builder machine does. The slot is its way to the package index; None where the wheels are on its disk."""
    shape = Shape(vcpus=1, memory_mb=limits.memory_mb, disk_mb=limits.disk_mb, network=slot is not None)
    return AttemptPlan(
        machine=MachineSpec(image=image, shape=shape, script_disk=disk, slot=slot),
        command=Command(
            argv=["python3", f"{WORKING_FOLDER}/install_pypi.py"],
            env=DEFAULT_ENV | {"TMPDIR": WORKING_FOLDER},
            max_processes=settings.max_processes,
        ),
        stdin=b"",
        timeout_seconds=limits.timeout_seconds,
        grace_seconds=settings.grace_seconds,
        boot_timeout_seconds=settings.boot_timeout_seconds,
        artifacts=("layer.tar", "report.json"),
        max_artifact_bytes=limits.max_layer_mb * _MB,
        max_artifact_count=2,
    )


async def build_layer(
    dependencies: Dependencies,
    plan: AttemptPlan,
    hypervisor: Hypervisor,
    layers: Layers,
    work: Path,
    cancel: asyncio.Event,
    limits: BuilderLimits,
) -> Layer:
    """Run a builder and keep what it installed. `work` is an empty folder that the caller removes.

    Raises LayerBuildError, with pip's last words, for what cannot be resolved or installed; MachineError, HostError.
    """
    image = plan.machine.image
    log = BuildLog(FolderArtifacts(work / "out"))
    end = await run_attempt(plan, hypervisor, log, cancel)
    if end.stop is Stop.TIMED_OUT:
        raise LayerBuildError(f"{dependencies.origin}: installing took over {plan.timeout_seconds:g} s")
    if end.exited is None or end.exited.exit_code != 0:
        raise LayerBuildError(f"{dependencies.origin}: {_reason(log.words())}", log=log.words())
    archive, report = work / "out" / "layer.tar", work / "out" / "report.json"
    if end.collect_error is not None or not (archive.is_file() and report.is_file()):
        raise LayerBuildError(
            f"{dependencies.origin}: what was installed is over {limits.max_layer_mb} MB, or could not be fetched"
        )
    lock = read_lock(report.read_bytes(), dependencies.kind, image.manifest.root.sha256)
    maximum = plan.max_artifact_bytes
    return await layers.keep(dependencies.key, lock, archive, max_bytes=maximum, max_files=_MAX_FILES)


def _reason(words: str) -> str:
    """What pip gave as the reason: its last error."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip said nothing"])[-1][:300]


async def lay_under(script_disk: Path, layer: Layer, out: Path) -> None:
    """Make one disk of a script's files and a layer below them, in `LAYER_FOLDER`. Same inputs, same bytes.

    Raises HostError, MissingTool, DiskFull.
    """
    tree = out.with_suffix(".tree")
    try:
        await _extract(script_disk, tree)
        await _extract(layer.disk, tree / LAYER_FOLDER)
        await pack_tree(tree, out)
    finally:
        await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)


async def _extract(disk: Path, folder: Path) -> None:
    command = ["fsck.erofs", f"--extract={folder}", "--force", "--no-preserve-owner", "--preserve-perms", str(disk)]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise MissingTool("fsck.erofs is not installed; run: apt-get install erofs-utils") from None
    try:
        async with asyncio.timeout(_COMPOSE_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        raise HostError(f"fsck.erofs did not end within {_COMPOSE_SECONDS} s; is the disk overloaded?") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise HostError(f"cannot unpack {disk.name}: {said.decode(errors='replace').strip()[-200:]}")
