"""Installs the packages of a script, once, inside a machine of its own.

The builder machine runs the image that the job will run, with an installer beside it; it reaches the package registries
and nothing else. Its archive and report are hostile, and are checked like a layer of a container image. This module
does not decide when a job needs a build.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import ssl
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from belljar import packages
from belljar.model.errors import DiskFull, LayerBuildError, MissingTool
from belljar.model.image import Image
from belljar.model.job import Job, Resources
from belljar.model.script import Dependencies
from belljar.node.guest.command import Command
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.worker.artifact_folder import FolderArtifacts
from belljar.node.worker.attempt import MachineFactory, attempt
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.job_network import JobNetwork, format_refusals, network_use
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.plan import DEFAULT_ENV, WORKING_FOLDER, AttemptPlan
from belljar.packages.layers import LayerCache, PackageLayer, PackageLock, read_report
from belljar.scripts.pack import pack_tree
from belljar.settings import Settings
from belljar.settings.packages import PackageSettings
from belljar.system.executables import find_executable
from belljar.system.host_errors import host_errors

_MB = 1024 * 1024
_MAX_LOG_BYTES = 256 * 1024
#: vCPUs of a builder: compiling modules, its slowest work, runs on several.
_VCPUS = 2
#: Where the programs are that install packages inside a machine.
_INSTALLER_FOLDER = Path(packages.__file__).parent
#: By kind of packages: the program of the image, and the installer that it runs.
_INSTALLERS = {"pypi": ("python3", "guest_pypi.py"), "npm": ("node", "guest_npm.js")}
#: Where systems keep the certificates that they trust.
_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
#: How npm begins a line about an error.
_NPM_ERROR = re.compile(r"^npm (?:error|ERR!) ?")
#: How uv begins a reason: `cause:` since 0.13.
_UV_CAUSE = re.compile(r"^\s*(?:╰─▶|├─▶|Caused by:|cause:)\s*")


class BuilderOutput(AttemptObserver):
    """The observer of a builder: passes its output on to the job's observer, up to a limit, and keeps its files."""

    artifacts: FolderArtifacts

    def __init__(self, artifacts: FolderArtifacts, job_observer: AttemptObserver) -> None:
        self.artifacts = artifacts
        self.output = self
        self.text = bytearray()
        self._job_observer = job_observer

    async def write(self, stream: Stream, data: bytes) -> None:
        kept = data[: _MAX_LOG_BYTES - len(self.text)]
        self.text += kept
        self._job_observer.on_build_output(kept)

    def full(self, stream: Stream) -> bool:
        return len(self.text) >= _MAX_LOG_BYTES


async def pack_builder(needs: Dependencies, disk: Path, settings: Settings) -> None:
    """Pack a builder's script disk: the installer, its requirements, and the certificates that this host trusts.

    Raises MissingTool without uv, DiskFull.
    """
    write_requirements = {"pypi": _write_pypi_requirements, "npm": _write_npm_requirements}[needs.kind]
    certificates = _certificates(settings)
    tree = disk.with_suffix(".tree")

    def write_tree() -> None:
        tree.mkdir()
        installer = _INSTALLERS[needs.kind][1]
        shutil.copyfile(_INSTALLER_FOLDER / installer, tree / installer)
        write_requirements(needs, tree)
        if certificates is not None:
            shutil.copyfile(certificates, tree / "certificates.pem")

    try:
        with host_errors("prepare the packages that the script requires"):
            await asyncio.to_thread(write_tree)
            await pack_tree(tree, disk)
    finally:
        await asyncio.to_thread(shutil.rmtree, tree, ignore_errors=True)


def _write_pypi_requirements(needs: Dependencies, tree: Path) -> None:
    shutil.copyfile(_uv(), tree / "uv")
    (tree / "uv").chmod(0o755)
    (tree / "requirements.in").write_text("".join(f"{each}\n" for each in needs.requirements))


def _write_npm_requirements(needs: Dependencies, tree: Path) -> None:
    versions = dict(each.rsplit("@", 1) for each in needs.requirements)
    (tree / "package.json").write_text(json.dumps({"private": True, "dependencies": versions}))


def _uv() -> Path:
    """Return the uv of belljar's own dependencies, else that of the PATH. Raises MissingTool."""
    own = Path(sysconfig.get_path("scripts")) / "uv"
    uv = str(own) if own.is_file() else find_executable("uv")
    if uv is None:
        raise MissingTool("uv, which installs packages, is missing; install belljar with its dependencies again")
    return Path(uv)


def _certificates(settings: PackageSettings) -> Path | None:
    """Return the certificates that this host trusts; None if there are none: uv has the usual ones built in."""
    if settings.package_ca_file is not None:
        return settings.package_ca_file
    own = ssl.get_default_verify_paths().cafile
    return next((Path(each) for each in (own, *_CERTIFICATES) if each and Path(each).is_file()), None)


def builder_resources(settings: PackageSettings) -> Resources:
    """Return the resources of a builder machine."""
    return Resources(
        vcpus=min(_VCPUS, os.cpu_count() or 1),
        memory_mb=settings.dependencies_memory_mb,
        disk_mb=settings.dependencies_disk_mb,
    )


def builder_plan(needs: Dependencies, image: Image, disk: Path, settings: Settings) -> AttemptPlan:
    """Return the plan of a builder machine with that script disk."""
    shape = round_up_shape(**builder_resources(settings).model_dump(), network=True)
    max_layer_bytes = settings.max_layer_mb * _MB
    env = {
        **DEFAULT_ENV,
        **image.manifest.env,
        "HOME": WORKING_FOLDER,
        "TMPDIR": WORKING_FOLDER,
        "MAX_LAYER_BYTES": str(max_layer_bytes),
        # Node.js ignores a missing file.
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
        machine=MachineSpec(image=image, shape=shape, script_disk=disk),
        command=Command(argv=[program, f"{WORKING_FOLDER}/{installer}"], env=env, max_processes=settings.max_processes),
        stdin=b"",
        timeout_seconds=settings.dependencies_timeout_seconds,
        grace_seconds=settings.grace_seconds,
        boot_timeout_seconds=settings.boot_timeout_seconds,
        artifacts=("layer.tar", "report.json"),
        # An archive is larger than its files, by a block for each.
        max_artifact_bytes=2 * max_layer_bytes,
        max_artifact_count=2,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageBuild:
    """One build: the packages, and the parts of the node that install them."""

    #: A job like the one that needs the packages, with the egress `packages`.
    job: Job
    dependencies: Dependencies
    image: Image
    machine_factory: MachineFactory
    network: JobNetwork
    layers: LayerCache
    #: An empty folder, which the caller removes.
    folder: Path
    observer: AttemptObserver
    cancel: asyncio.Event


async def build_layer(build: PackageBuild, settings: Settings) -> PackageLayer | None:
    """Run a builder and keep the packages that it installed; return None when it was cancelled.

    Raises LayerBuildError with the installer's reason; MissingTool, DiskFull, MachineError, HostError.
    """
    needs, folder = build.dependencies, build.folder / "out"
    disk = build.folder / "builder.erofs"
    await pack_builder(needs, disk, settings)
    plan = builder_plan(needs, build.image, disk, settings)
    output = BuilderOutput(FolderArtifacts(folder), build.observer)
    with host_errors("store the packages that the script requires"):
        async with attempt(plan, build.machine_factory, output, build.cancel, build.network) as end:
            for sentence in format_refusals(network_use(end.traffic, end.flows), build.job):
                build.observer.on_build_notice(sentence)
    if end.stop is Stop.CANCELLED:
        return None
    failure = _failure(end, plan, output.text.decode(errors="replace"))
    if failure is None and output.artifacts.failed:
        reason = output.artifacts.failed[0].reason
        raise DiskFull(f"the script's packages could not be kept: {reason}; free some space")
    archive, report = folder / "layer.tar", folder / "report.json"
    if failure is None and not (archive.is_file() and report.is_file()):
        failure = "the installed packages could not be fetched; they may be larger than max_layer_mb"
    if failure is not None:
        raise LayerBuildError(f"{needs.origin}: {failure}")
    lock = PackageLock(kind=needs.kind, root=build.image.manifest.root.sha256, installed=read_report(report))
    return await build.layers.store(build.layers.key(needs.key, lock.root), lock, archive, build.folder)


def _failure(end: AttemptEnd, plan: AttemptPlan, text: str) -> str | None:
    """Return why the installation failed, and what to do; None when it succeeded. `text` is the builder's output."""
    shape = plan.machine.shape
    if end.stop is Stop.TIMED_OUT:
        return (
            f"installing took over {plan.timeout_seconds:g} s; require fewer packages, or raise the setting "
            "dependencies_timeout_seconds"
        )
    if end.not_started is not None:
        return f"the image {plan.machine.image.name} has no {plan.command.argv[0]} that could install packages"
    if end.exited is not None and end.exited.exit_code == 0:
        return None
    if "No space left on device" in text:
        return (
            f"the packages do not fit into the {shape.disk_mb} MB of the builder's disk; require fewer packages, or "
            "raise the setting dependencies_disk_mb"
        )
    if end.exited is not None and end.exited.oom_kills:
        return f"installing needs more than {shape.memory_mb} MB of memory; raise the setting dependencies_memory_mb"
    return failure_reason(text)


def failure_reason(text: str) -> str:
    """Return the reason that uv or npm gave, in one line: the error, its last cause, and the last output of a build."""
    lines = [line.rstrip() for line in text.splitlines()]
    npm = [_NPM_ERROR.sub("", line) for line in lines if _NPM_ERROR.match(line)]
    if npm:
        return _one_line(next((line for line in npm if line and not line.startswith("code ")), npm[0]))
    start = next((number for number in reversed(range(len(lines))) if _is_error(lines[number])), None)
    if start is None:
        printed = [line.strip() for line in lines if line.strip()]
        return _one_line(printed[-1] if printed else "the installer printed nothing")
    error = re.sub(r"^\s*(×|error:)\s*", "", lines[start]).rstrip(":")
    rest = [line for line in lines[start + 1 :] if line.strip()]
    hint = next((number for number, line in enumerate(rest) if re.match(r"\s*(hint|help):", line)), len(rest))
    causes = [_UV_CAUSE.sub("", line) for line in rest[:hint] if _UV_CAUSE.match(line)]
    has_stderr = "[stderr]" in (line.strip() for line in rest[:hint])
    return _one_line(": ".join([error, *causes[-1:], *(rest[hint - 1 : hint] if has_stderr else [])]))


def _is_error(line: str) -> bool:
    return line.startswith("error:") or line.lstrip().startswith("×")


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", "".join(letter for letter in text if letter.isprintable()))[:400].strip()
