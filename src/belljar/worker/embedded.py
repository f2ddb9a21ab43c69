"""One job without a server: prepared, run in a machine here, and forgotten. What `belljar run` does."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from belljar.data_dir import private_folder
from belljar.errors import DataFolderError, DiskFull, HostError, MachineError
from belljar.guest.wire import Stream
from belljar.images.catalog import Images
from belljar.images.manifest import Image
from belljar.jobs.model import Artifact, Job, JobOptions, LogInfo, MachineInfo, Timings
from belljar.jobs.resolve import resolve_job, runnable_of
from belljar.machines.choose import Chooser
from belljar.machines.firecracker.folder import jails
from belljar.machines.leftovers import clear_leftovers
from belljar.machines.protocol import Hypervisor, MachineSpec
from belljar.machines.snapshots import Snapshots
from belljar.machines.supply import Ready, Source, Supply
from belljar.network.leftovers import clear_network_leftovers
from belljar.scripts.limits import UploadLimits
from belljar.scripts.prepare import prepare
from belljar.settings import Settings
from belljar.worker.attempt import AttemptEnd, run_attempt
from belljar.worker.capacity import Capacity
from belljar.worker.ending import error_of, signal_name, status_of, usage_of
from belljar.worker.networking import JobNetwork, Networking, network_use, told
from belljar.worker.output import FolderArtifacts
from belljar.worker.plan import plan_attempt
from belljar.worker.preparing import Preparations

if TYPE_CHECKING:
    from belljar.worker.installing import Provided

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
    stdout: BinaryIO
    stderr: BinaryIO
    #: Artifacts are laid below this folder.
    artifacts_dir: Path | None
    #: Told the serial console when the machine has ended.
    console: Callable[[bytes], None]
    #: Told what is said while the script's packages are installed.
    build: Callable[[bytes], None]
    #: Told in a sentence what a person should know meanwhile.
    notice: Callable[[str], None]


async def run_embedded(run: EmbeddedRun, settings: Settings, cancel: asyncio.Event) -> Job:
    """Run one job to its end and return it as a server would. Setting `cancel` stops it.

    Raises InvalidScript, UnknownLanguage, UnknownImage, InvalidOption, TooLarge, DataFolderError, HostError,
    MachineError.
    """
    images = Images(settings.data_dir)
    with _work_folder(settings.data_dir / "run" / "embedded") as folder:
        prepared = await prepare(
            run.source,
            filename=run.filename,
            language=run.language,
            entrypoint=run.entrypoint,
            languages=images.languages(),
            limits=UploadLimits.of(settings),
            work=Path(folder),
        )
        await clear_leftovers(jails=jails(settings))
        await asyncio.to_thread(clear_network_leftovers)
        name = run.options.image or images.image_for(prepared.language)
        image = images.get(name)
        script = runnable_of(prepared.id, prepared.language, prepared.entrypoint, prepared.dependencies, image)
        largest = Capacity.of_host(settings).largest()
        job = resolve_job(run.options, script, project=PROJECT, image=name, settings=settings, largest=[largest])
        await asyncio.to_thread(images.verify, image)
        hypervisor = await Chooser(settings).hypervisor(image)
        preparation = await Preparations(settings).of(image)
        supply = Supply(Snapshots(settings) if settings.snapshots == "on" else None)
        audience = _Terminal(run)
        ends: list[AttemptEnd] = []
        provided = None
        if job.dependencies is not None and job.dependencies.requirements:
            started = time.monotonic()
            provided = await _provide(job, image, prepared.disk, hypervisor, audience, cancel, settings)
            audience.before["dependencies"] = round((time.monotonic() - started) * 1000, 3)

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

                    def take(spec: MachineSpec, network: JobNetwork = network) -> AbstractAsyncContextManager[Ready]:
                        return network.taking(
                            lambda plug: supply.machine(
                                hypervisor, spec, preparation, settings.boot_timeout_seconds, plug
                            )
                        )

                    async def ended(end: AttemptEnd, network: JobNetwork = network) -> None:
                        end.traffic = await network.traffic()
                        ends.append(end)

                    await run_attempt(plan, take, audience, cancel, ended)
            except MachineError as error:
                # A script that has begun is not begun again: its output has been seen.
                if audience.started_at is not None or attempt == job.max_attempts:
                    raise
                run.notice(f"attempt {attempt} was lost: {error.message}; trying again")
            else:
                for sentence in told(network_use(ends[-1].traffic), job):
                    run.notice(sentence.removeprefix("belljar: "))
                return _ended(job, attempt, ends[-1], audience, hypervisor)
    raise AssertionError("a loop over at least one attempt returns or raises")


async def _provide(
    job: Job,
    image: Image,
    script_disk: Path,
    hypervisor: Hypervisor,
    audience: _Terminal,
    cancel: asyncio.Event,
    settings: Settings,
) -> Provided | None:
    from belljar.worker.installing import Installer, Wanted  # nothing that most runs should wait for

    wanted = Wanted(
        job=job, image=image, script_disk=script_disk, hypervisor=hypervisor, onlooker=audience, cancel=cancel
    )
    async with Networking(settings) as networking:
        installer = Installer(settings, networking.attached)
        await installer.clear()
        return await installer.provide(wanted)


def _work_folder(root: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for one run, gone with its block. Raises DataFolderError."""
    try:
        private_folder(root)
        return tempfile.TemporaryDirectory(dir=root)
    except OSError as error:
        raise DataFolderError(f"cannot write {root}: {error.strerror}; set --data-dir to another folder") from error


def _ended(job: Job, attempt: int, end: AttemptEnd, audience: _Terminal, hypervisor: Hypervisor) -> Job:
    now, exited, started_at = datetime.now(UTC), end.exited, audience.started_at
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
            "timings": Timings(queue_ms=0, machine_ms=to_start, run_ms=run_ms, phases=audience.before | end.phases),
            "usage": usage_of(end),
            "network": network_use(end.traffic),
            "machine": audience.source
            and MachineInfo(source=audience.source, hypervisor=hypervisor.name, accelerator=hypervisor.accelerator),
            "logs": LogInfo(
                stdout_bytes=audience.output.sent[Stream.STDOUT], stderr_bytes=audience.output.sent[Stream.STDERR]
            ),
            "kept_artifacts": tuple(audience.kept()),
        }
    )


class _Terminal:
    """The audience of one embedded run: the caller's own streams and folder."""

    def __init__(self, run: EmbeddedRun) -> None:
        self._run = run
        self.output = _Passed(run.stdout, run.stderr)
        self.artifacts: FolderArtifacts | _Nowhere = (
            FolderArtifacts(run.artifacts_dir) if run.artifacts_dir is not None else _Nowhere()
        )
        self.started_at: datetime | None = None
        #: Milliseconds of what came before there was a machine.
        self.before: dict[str, float] = {}
        self.source: Source | None = None

    def took(self, source: Source) -> None:
        self.source = source

    def started(self) -> None:
        self.started_at = datetime.now(UTC)

    def console(self, data: bytes, dropped_bytes: int) -> None:
        self._run.console(data)

    def build_notice(self, sentence: str) -> None:
        self._run.notice(sentence.removeprefix("belljar: "))

    def build_words(self, data: bytes) -> None:
        self._run.build(data)

    def kept(self) -> list[Artifact]:
        return self.artifacts.kept


class _Nowhere:
    """Takes artifacts that nobody gave a folder for."""

    def __init__(self) -> None:
        self.kept: list[Artifact] = []

    async def begin(self, path: str, size: int) -> None: ...

    async def write(self, data: bytes) -> None: ...

    async def end(self) -> None: ...


class _Passed:
    """Passes output on as it comes. A stream whose reader went away is full: the job goes on without it."""

    def __init__(self, stdout: BinaryIO, stderr: BinaryIO) -> None:
        self._files = {Stream.STDOUT: stdout.fileno(), Stream.STDERR: stderr.fileno()}
        self._closed: set[Stream] = set()
        self.sent = dict.fromkeys(self._files, 0)

    async def write(self, stream: Stream, data: bytes) -> None:
        if stream in self._closed:
            return
        try:
            # In a thread: the reader of a pipe may be slow, and a machine must be watched meanwhile.
            await asyncio.to_thread(_write_all, self._files[stream], data)
            self.sent[stream] += len(data)
        except BrokenPipeError:
            self._closed.add(stream)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull("no room left where the output is written to; free some space") from error
            raise HostError(f"cannot write the output: {error.strerror}") from error

    def full(self, stream: Stream) -> bool:
        return stream in self._closed

    def info(self) -> LogInfo:
        """How much was passed on, for the job's record."""
        return LogInfo(stdout_bytes=self.sent[Stream.STDOUT], stderr_bytes=self.sent[Stream.STDERR])


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
