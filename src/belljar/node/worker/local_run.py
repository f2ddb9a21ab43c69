"""One job without a server: prepared, run in a machine here, and forgotten. What `belljar run` does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from belljar.control.jobs.resolve import resolve_job, runnable_of
from belljar.images.catalog import Images
from belljar.model.errors import MachineError
from belljar.model.image import Image
from belljar.model.job import Artifact, Job, JobOptions, LogInfo, MachineInfo, Timings
from belljar.node.guest.wire import Stream
from belljar.node.machines.firecracker.folder import jails
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.provisioner import MachineProvisioner, ProvisionedMachine, Source
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.network.leftovers import clear_network_leftovers
from belljar.node.worker.artifact_folder import FolderArtifacts
from belljar.node.worker.attempt import AttemptEnd, run_attempt
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.job_network import JobNetwork, Networking, network_use, told
from belljar.node.worker.outcome import error_of, signal_name, status_of, usage_of
from belljar.node.worker.passthrough import PassthroughOutput
from belljar.node.worker.plan import plan_attempt
from belljar.node.worker.warm_ups import WarmUps
from belljar.node.worker.work_folder import work_folder
from belljar.scripts.limits import UploadLimits
from belljar.scripts.prepare import prepare
from belljar.scripts.selection import Selection
from belljar.settings import Settings

if TYPE_CHECKING:
    from belljar.node.worker.package_installer import InstalledPackages

PROJECT = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedRun:
    """What to run and where its output goes."""

    #: A file, an archive, or a folder.
    source: Path
    #: What the source is called, where that is not its path's name (standard input).
    filename: str
    options: JobOptions
    language: str | None
    entrypoint: str | None
    #: What of a folder belongs to the script.
    selection: Selection
    #: Descriptors that the job's output is written to.
    stdout: int
    stderr: int
    #: Takes the artifacts; the caller reads there which did not arrive.
    artifacts: FolderArtifacts | None
    #: Told the serial console when the machine has ended.
    console: Callable[[bytes], None]
    #: Told what is said while the script's packages are installed.
    build: Callable[[bytes], None]
    #: Told in a sentence what a person should know meanwhile.
    notice: Callable[[str], None]
    #: Told that whoever reads the output has gone.
    closed: Callable[[], None]
    #: Set when `cancel` is heeded from now on; before, the caller cancels the task.
    cancellable: asyncio.Event = field(default_factory=asyncio.Event)


async def run_embedded(run: EmbeddedRun, settings: Settings, cancel: asyncio.Event) -> Job:
    """Run one job to its end and return it as a server would. Setting `cancel` stops it, once it is `cancellable`.

    Raises InvalidScript, UnknownLanguage, UnknownImage, InvalidOption, TooLarge, DataFolderError, HostError,
    MachineError.
    """
    images = Images(settings.data_dir)
    with work_folder(settings.data_dir) as folder:
        prepared = await prepare(
            run.source,
            filename=run.filename,
            language=run.language,
            entrypoint=run.entrypoint,
            languages=images.languages(),
            limits=UploadLimits.from_settings(settings),
            work=folder,
            selection=run.selection,
        )
        uploaded = prepared.script
        if (sentence := run.selection.sentence()) is not None:
            run.notice(sentence)
        await clear_leftovers(jails=jails(settings))
        await asyncio.to_thread(clear_network_leftovers)
        name = run.options.image or images.image_for(uploaded.language)
        image = images.get(name)
        script = runnable_of(uploaded.id, uploaded.language, uploaded.entrypoint, uploaded.dependencies, image)
        largest = Capacity.of_host(settings).largest()
        job = resolve_job(run.options, script, project=PROJECT, image=name, settings=settings, largest=[largest])
        await asyncio.to_thread(images.verify, image)
        hypervisor = await HypervisorSelector(settings).hypervisor(image)
        warm_up_steps = await WarmUps(settings).of(image)
        provisioner = MachineProvisioner(Snapshots(settings) if settings.snapshots == "on" else None)
        observer = _Terminal(run, cancel)
        ends: list[AttemptEnd] = []
        run.cancellable.set()
        provided = None
        if job.dependencies is not None and job.dependencies.requirements:
            started = time.monotonic()
            provided = await _provide(job, image, prepared.disk, hypervisor, observer, cancel, settings)
            observer.before["dependencies"] = round((time.monotonic() - started) * 1000, 3)

        for attempt in range(1, job.max_attempts + 1):
            try:
                async with Networking(settings) as networking:
                    network = networking.of(job)
                    plan = plan_attempt(
                        job,
                        image,
                        prepared.disk,
                        run.options.stdin_bytes(),
                        settings,
                        network=network.wanted,
                        env=network.environment,
                    )
                    plan = provided.on(plan) if provided is not None else plan

                    def take(
                        spec: MachineSpec, network: JobNetwork = network
                    ) -> AbstractAsyncContextManager[ProvisionedMachine]:
                        return network.taking(
                            lambda slot_factory: provisioner.machine(
                                hypervisor, spec, warm_up_steps, settings.boot_timeout_seconds, slot_factory
                            )
                        )

                    async def ended(end: AttemptEnd) -> None:
                        ends.append(end)

                    await run_attempt(plan, take, observer, cancel, ended, network.traffic)
            except MachineError as error:
                # A script that has begun is not begun again: its output has been seen.
                if observer.started_at is not None or attempt == job.max_attempts:
                    raise
                run.notice(f"attempt {attempt} was lost: {error.message}; trying again")
            else:
                for sentence in told(network_use(ends[-1].traffic), job):
                    run.notice(sentence.removeprefix("belljar: "))
                return _ended(job, attempt, ends[-1], observer, hypervisor)
    raise AssertionError("a loop over at least one attempt returns or raises")


async def _provide(
    job: Job,
    image: Image,
    script_disk: Path,
    hypervisor: Hypervisor,
    observer: _Terminal,
    cancel: asyncio.Event,
    settings: Settings,
) -> InstalledPackages | None:
    from belljar.node.worker.package_installer import (  # nothing that most runs should wait for
        Installer,
        InstallRequest,
    )

    wanted = InstallRequest(
        job=job, image=image, script_disk=script_disk, hypervisor=hypervisor, onlooker=observer, cancel=cancel
    )
    async with Networking(settings) as networking:
        installer = Installer(settings, networking.attached)
        await installer.clear()
        return await installer.provide(wanted)


def _ended(job: Job, attempt: int, end: AttemptEnd, observer: _Terminal, hypervisor: Hypervisor) -> Job:
    now, exited, started_at = datetime.now(UTC), end.exited, observer.started_at
    to_start = (started_at - job.created_at).total_seconds() * 1000 if started_at else None
    run_ms = end.phases.get("run") if started_at else None
    return job.model_copy(
        update={
            "status": status_of(end),
            "attempt": attempt,
            "exit_code": exited.exit_code if exited else None,
            "signal": signal_name(exited.signal) if exited else None,
            "error": error_of(end, job),
            "started_at": started_at,
            "finished_at": now,
            "timings": Timings(queue_ms=0, machine_ms=to_start, run_ms=run_ms, phases=observer.before | end.phases),
            "usage": usage_of(end),
            "network": network_use(end.traffic),
            "machine": observer.source
            and MachineInfo(source=observer.source, hypervisor=hypervisor.name, accelerator=hypervisor.accelerator),
            "logs": LogInfo(
                stdout_bytes=observer.output.sent[Stream.STDOUT], stderr_bytes=observer.output.sent[Stream.STDERR]
            ),
            "kept_artifacts": tuple(observer.kept()),
        }
    )


class _Terminal:
    """The audience of one embedded run: the caller's own streams and folder."""

    def __init__(self, run: EmbeddedRun, cancel: asyncio.Event) -> None:
        self._run = run
        self.output = PassthroughOutput(run.stdout, run.stderr, cancel, run.closed)
        self.artifacts: FolderArtifacts | DiscardArtifacts = (
            run.artifacts if run.artifacts is not None else DiscardArtifacts()
        )
        self.started_at: datetime | None = None
        #: Milliseconds of what came before there was a machine.
        self.before: dict[str, float] = {}
        self.source: Source | None = None

    def took(self, source: Source) -> None:
        self.source = source

    def started(self) -> None:
        self.started_at = datetime.now(UTC)

    def script_ended(self, end: AttemptEnd) -> None:
        pass

    def console(self, data: bytes, dropped_bytes: int) -> None:
        self._run.console(data)

    def build_notice(self, sentence: str) -> None:
        self._run.notice(sentence.removeprefix("belljar: "))

    def build_words(self, data: bytes) -> None:
        self._run.build(data)

    def kept(self) -> list[Artifact]:
        return self.artifacts.kept


class DiscardArtifacts:
    """Takes artifacts that nobody gave a folder for."""

    def __init__(self) -> None:
        self.kept: list[Artifact] = []

    async def begin(self, path: str, size: int) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...
