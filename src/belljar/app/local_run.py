"""Runs one job without a server: the control plane resolves it, the node runs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from belljar.control.jobs.resolve import ResolvedScript, resolve_job
from belljar.images.catalog import Images
from belljar.link.secrets import JobSecret
from belljar.model.job import Job
from belljar.model.job_options import JobOptions
from belljar.node.machines.host.leftovers import clear_leftovers
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.selector import HypervisorSelector
from belljar.node.network.leftovers import clear_network_leftovers
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.job_network import Networking
from belljar.node.worker.local_run import LocalObserver, run_local_job
from belljar.node.worker.runner import JobInput, JobRunner
from belljar.node.worker.warm_ups import WarmUps
from belljar.node.worker.work_folder import work_folder
from belljar.scripts.limits import UploadLimits
from belljar.scripts.prepare import UnpackedScript, prepare
from belljar.scripts.selection import Selection
from belljar.settings import Settings
from belljar.settings.secrets import remove_key_from_environment
from belljar.system.core_dumps import forbid_core_dumps

#: The project of jobs without a server.
LOCAL_PROJECT = "local"


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalRequest:
    """A job to run without a server."""

    #: A file, an archive, or a folder.
    source: Path
    #: The file name of the source; not that of its path for standard input.
    filename: str
    options: JobOptions
    language: str | None
    entrypoint: str | None
    #: Which files of a folder belong to the script.
    selection: Selection
    #: Set as soon as setting `cancel` stops the job; before, the caller cancels the task.
    cancellable: asyncio.Event = field(default_factory=asyncio.Event)


async def run_locally(request: LocalRequest, settings: Settings, observer: LocalObserver, cancel: asyncio.Event) -> Job:
    """Run one job to its end in a machine of this host, and return it as a server would.

    Raises InvalidScript, UnknownLanguage, UnknownImage, InvalidOption, TooLarge, DataFolderError, HostError,
    MachineError.
    """
    forbid_core_dumps()
    remove_key_from_environment()
    images = Images(settings.data_dir)
    with work_folder(settings.data_dir) as folder:
        prepared = await prepare(
            request.source,
            filename=request.filename,
            language=request.language,
            entrypoint=request.entrypoint,
            languages=images.languages(),
            limits=UploadLimits.from_settings(settings),
            work=folder,
            selection=request.selection,
        )
        if (sentence := request.selection.sentence()) is not None:
            observer.notify(sentence)
        await clear_leftovers(jails=settings.paths.jails)
        await asyncio.to_thread(clear_network_leftovers)
        job = _resolve(request, prepared.script, images, settings)
        secrets = await _open_secrets(request.options, settings)
        job_input = JobInput(script_disk=prepared.disk, stdin=request.options.stdin_bytes(), secrets=secrets)
        async with Networking(settings) as networking:
            runner = JobRunner(
                settings,
                images=images,
                choose_hypervisor=HypervisorSelector(settings).hypervisor,
                warm_ups=WarmUps(settings),
                provisioner=MachineProvisioner(Snapshots(settings) if settings.snapshots == "on" else None),
                networking=networking,
            )
            return await run_local_job(runner, job, job_input, observer, cancel, request.cancellable)


def _resolve(request: LocalRequest, script: UnpackedScript, images: Images, settings: Settings) -> Job:
    name = request.options.image or images.image_for(script.language)
    resolved = ResolvedScript.from_image(
        script.id, script.language, script.entrypoint, script.dependencies, images.get(name)
    )
    limits = Capacity.of_host(settings).largest()
    return resolve_job(
        request.options, resolved, project=LOCAL_PROJECT, image=name, settings=settings, largest=[limits]
    )


async def _open_secrets(options: JobOptions, settings: Settings) -> tuple[JobSecret, ...]:
    """Return the secrets that the job names, those of the default project in the data folder.

    Raises SecretMissing, SecretsKeyError, HostError.
    """
    if not options.secrets:
        return ()
    # A database takes longer to load than a job to start, and most jobs need none.
    from belljar.control.projects.identity import DEFAULT_PROJECT
    from belljar.control.secrets.keys import open_keys
    from belljar.control.secrets.service import SecretService
    from belljar.control.store.opening import open_database
    from belljar.control.store.secrets import SqlSecrets

    database = await open_database(settings, migrate=False)
    try:
        return await SecretService(SqlSecrets(database), open_keys(settings)).open(DEFAULT_PROJECT, options.secrets)
    finally:
        await database.close()
