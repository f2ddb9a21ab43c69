"""Installs what a script needs, once, inside a machine of its own.

The builder machine runs the image that the job will run, with an installer beside it; its egress is the caller's to
give (a slot that reaches the package index and nothing else). What comes out is an archive and a report; both are
hostile, and are checked like any layer of a container image. Nothing here decides when a job needs that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from belljar import packages
from belljar.model.errors import DiskFull, LayerBuildError, MissingTool
from belljar.model.image import Image
from belljar.model.job import Resources
from belljar.model.script import Dependencies
from belljar.node.guest.command import Command
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import Hypervisor, MachineSpec, NetworkSlot
from belljar.node.machines.provision.provisioner import ProvisionedMachine, Source, booted
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.network.attachment import Attachment
from belljar.node.network.traffic import Traffic
from belljar.node.worker.artifact_folder import FolderArtifacts
from belljar.node.worker.attempt import AttemptEnd, AttemptPlan, Stop, run_attempt
from belljar.node.worker.plan import DEFAULT_ENV, WORKING_FOLDER
from belljar.packages.layers import Layer, Layers, Lock, read_report
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from belljar.system.executables import find_executable
from belljar.system.host_errors import host_errors

_MB = 1024 * 1024
_MAX_LOG_BYTES = 256 * 1024
#: Processors of a builder: what is slow about it, compiling modules, runs on several.
_VCPUS = 2
#: What installs packages of each kind: a program of the image, and the file that it runs.
#: Where the programs lie that install packages inside a machine.
_INSTALLER_FOLDER = Path(packages.__file__).parent
_INSTALLERS = {"pypi": ("python3", "guest_pypi.py"), "npm": ("node", "guest_npm.js")}
#: Where systems keep the certificates that they trust.
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
#: How npm begins a line about an error.
_NPM = re.compile(r"^npm (?:error|ERR!) ?")
#: How uv begins a reason: `cause:` since 0.13.
_CAUSE = re.compile(r"^\s*(?:╰─▶|├─▶|Caused by:|cause:)\s*")


class BuildObserver(Protocol):
    """Who is told how a build goes."""

    def build_notice(self, sentence: str) -> None:
        """A sentence of belljar's own."""
        ...

    def build_words(self, data: bytes) -> None:
        """What the builder says: any bytes."""
        ...


@dataclass(slots=True)
class BuildLog:
    """The audience of a builder: passes its words on, bounded, for the user to read."""

    artifacts: FolderArtifacts
    onlooker: BuildObserver
    text: bytearray = field(default_factory=bytearray)

    @property
    def output(self) -> BuildLog:
        return self

    async def write(self, stream: Stream, data: bytes) -> None:
        kept = data[: _MAX_LOG_BYTES - len(self.text)]
        self.text += kept
        self.onlooker.build_words(kept)

    def full(self, stream: Stream) -> bool:
        return len(self.text) >= _MAX_LOG_BYTES

    def took(self, source: Source) -> None:
        pass

    def started(self) -> None:
        pass

    def script_ended(self, end: AttemptEnd) -> None:
        pass

    def console(self, data: bytes, dropped_bytes: int) -> None:
        pass


async def pack_builder(needs: Dependencies, disk: Path, settings: Settings) -> None:
    """Pack a builder's script disk: the installer, what is wanted, and whom the index is trusted by.

    Raises MissingTool without uv, DiskFull.
    """
    lay_needs = {"pypi": _lay_pypi, "npm": _lay_npm}[needs.kind]
    certificates = _certificates(settings)
    tree = disk.with_suffix(".tree")

    def lay() -> None:
        tree.mkdir()
        installer = _INSTALLERS[needs.kind][1]
        shutil.copyfile(_INSTALLER_FOLDER / installer, tree / installer)
        lay_needs(needs, tree)
        if certificates is not None:
            shutil.copyfile(certificates, tree / "certificates.pem")

    try:
        with host_errors("prepare the packages that the script requires"):
            await asyncio.to_thread(lay)
            await pack_tree(tree, disk)
    finally:
        await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)


def _lay_pypi(needs: Dependencies, tree: Path) -> None:
    shutil.copyfile(_uv(), tree / "uv")
    (tree / "uv").chmod(0o755)
    (tree / "requirements.in").write_text("".join(f"{each}\n" for each in needs.requirements))


def _lay_npm(needs: Dependencies, tree: Path) -> None:
    wanted = dict(each.rsplit("@", 1) for each in needs.requirements)
    (tree / "package.json").write_text(json.dumps({"private": True, "dependencies": wanted}))


def _uv() -> Path:
    """The program that comes with belljar's own dependencies. Raises MissingTool."""
    own = Path(sysconfig.get_path("scripts")) / "uv"
    found = str(own) if own.is_file() else find_executable("uv")
    if found is None:
        raise MissingTool("uv, which installs packages, is not there; install belljar with its dependencies again")
    return Path(found)


def _certificates(settings: Settings) -> Path | None:
    """Those that this host trusts; None where they are not found: uv has the usual ones in it."""
    if settings.package_ca_file is not None:
        return settings.package_ca_file
    own = ssl.get_default_verify_paths().cafile
    return next((Path(each) for each in (own, *_CERTIFICATES) if each and Path(each).is_file()), None)


def builder_resources(settings: Settings) -> Resources:
    """What a builder machine takes of its host."""
    return Resources(
        vcpus=min(_VCPUS, os.cpu_count() or 1),
        memory_mb=settings.dependencies_memory_mb,
        disk_mb=settings.dependencies_disk_mb,
    )


def builder_plan(needs: Dependencies, image: Image, disk: Path, slot: NetworkSlot, settings: Settings) -> AttemptPlan:
    """What a builder machine does. The slot is its way to the package index."""
    shape = round_up_shape(**builder_resources(settings).model_dump(), network=True)
    most = settings.max_layer_mb * _MB
    env = {
        **DEFAULT_ENV,
        **image.manifest.env,
        "HOME": WORKING_FOLDER,
        "TMPDIR": WORKING_FOLDER,
        "MAX_LAYER_BYTES": str(most),
        # Node.js says nothing of a file that is not there.
        "NODE_EXTRA_CA_CERTS": f"{WORKING_FOLDER}/certificates.pem",
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "NO_COLOR": "1",
    }
    if settings.package_pypi_url is not None:
        env["UV_DEFAULT_INDEX"] = settings.package_pypi_url
    if settings.package_npm_url is not None:
        env["npm_config_registry"] = settings.package_npm_url
    program, installer = _INSTALLERS[needs.kind]
    return AttemptPlan(
        machine=MachineSpec(image=image, shape=shape, script_disk=disk, slot=slot),
        command=Command(argv=[program, f"{WORKING_FOLDER}/{installer}"], env=env, max_processes=settings.max_processes),
        stdin=b"",
        timeout_seconds=settings.dependencies_timeout_seconds,
        grace_seconds=settings.grace_seconds,
        boot_timeout_seconds=settings.boot_timeout_seconds,
        artifacts=("layer.tar", "report.json"),
        # An archive is larger than its files, by a block for each.
        max_artifact_bytes=2 * most,
        max_artifact_count=2,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """One build: what is wanted, and what it is made with."""

    needs: Dependencies
    image: Image
    hypervisor: Hypervisor
    #: The builder's network, and sentences about what it refused.
    network: Attachment
    refusals: Callable[[Traffic | None], Iterator[str]]
    layers: Layers
    #: An empty folder, which the caller removes.
    work: Path
    onlooker: BuildObserver
    cancel: asyncio.Event


async def build_layer(build: Build, settings: Settings) -> Layer | None:
    """Run a builder and keep what it installed; None when it was cancelled.

    Raises LayerBuildError, with the last words of what failed; MissingTool, DiskFull, MachineError, HostError.
    """
    needs, out = build.needs, build.work / "out"
    disk = build.work / "builder.erofs"
    await pack_builder(needs, disk, settings)
    plan = builder_plan(needs, build.image, disk, build.network.slot, settings)
    log = BuildLog(FolderArtifacts(out), build.onlooker)
    ends: list[AttemptEnd] = []

    @asynccontextmanager
    async def take(spec: MachineSpec) -> AsyncIterator[ProvisionedMachine]:
        async with AsyncExitStack() as stack:
            yield await booted(lambda: build.hypervisor.machine(spec), plan.boot_timeout_seconds, stack)

    async def ended(end: AttemptEnd) -> None:
        ends.append(end)
        for sentence in build.refusals(end.traffic):
            build.onlooker.build_notice(sentence)

    with host_errors("store the packages that the script requires"):
        await run_attempt(plan, take, log, build.cancel, ended, build.network.traffic)
    (end,) = ends
    if end.stop is Stop.CANCELLED:
        return None
    failure = _failure(end, plan, log.text.decode(errors="replace"))
    if failure is None and log.artifacts.failed:
        raise DiskFull(f"what the script needs could not be kept: {log.artifacts.failed[0].reason}; free some space")
    archive, report = out / "layer.tar", out / "report.json"
    if failure is None and not (archive.is_file() and report.is_file()):
        failure = "what was installed could not be fetched; it may be larger than max_layer_mb"
    if failure is not None:
        raise LayerBuildError(f"{needs.origin}: {failure}")
    lock = Lock(kind=needs.kind, root=build.image.manifest.root.sha256, installed=read_report(report))
    return await build.layers.keep(build.layers.key(needs.key, lock.root), lock, archive, build.work)


def _failure(end: AttemptEnd, plan: AttemptPlan, words: str) -> str | None:
    """Why nothing came of it, in words that say what to do; None when all is well."""
    shape = plan.machine.shape
    if end.stop is Stop.TIMED_OUT:
        return (
            f"installing took over {plan.timeout_seconds:g} s; ask for less, or raise the setting "
            "dependencies_timeout_seconds"
        )
    if end.not_started is not None:
        return f"the image {plan.machine.image.name} has no {plan.command.argv[0]} that could install packages"
    if end.exited is not None and end.exited.exit_code == 0:
        return None
    if "No space left on device" in words:
        return (
            f"the packages do not fit into the {shape.disk_mb} MB that there are to install them; ask for less, or "
            "raise the setting dependencies_disk_mb"
        )
    if end.exited is not None and end.exited.oom_kills:
        return f"installing needs more than {shape.memory_mb} MB of memory; raise the setting dependencies_memory_mb"
    return last_words(words)


def last_words(words: str) -> str:
    """What uv or npm gave as the reason, in one line: the error, its last cause, and what a build said in the end."""
    lines = [line.rstrip() for line in words.splitlines()]
    npm = [_NPM.sub("", line) for line in lines if _NPM.match(line)]
    if npm:
        return _line(next((line for line in npm if line and not line.startswith("code ")), npm[0]))
    start = next((number for number in reversed(range(len(lines))) if _is_error(lines[number])), None)
    if start is None:
        said = [line.strip() for line in lines if line.strip()]
        return _line(said[-1] if said else "the installer said nothing")
    error = re.sub(r"^\s*(×|error:)\s*", "", lines[start]).rstrip(":")
    rest = [line for line in lines[start + 1 :] if line.strip()]
    hint = next((number for number, line in enumerate(rest) if re.match(r"\s*(hint|help):", line)), len(rest))
    causes = [_CAUSE.sub("", line) for line in rest[:hint] if _CAUSE.match(line)]
    heard = "[stderr]" in (line.strip() for line in rest[:hint])
    return _line(": ".join([error, *causes[-1:], *(rest[hint - 1 : hint] if heard else [])]))


def _is_error(line: str) -> bool:
    return line.startswith("error:") or line.lstrip().startswith("×")


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(letter for letter in text if letter.isprintable()))[:400].strip()
