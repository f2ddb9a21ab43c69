"""The steps of a job on a node, from its image to the end of its machine: for a worker, and without a server.

A step that has no effect before it succeeds goes through the caller's `retry`. A script that has begun is never begun
again here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from belljar.images.catalog import Images
from belljar.link.secrets import JobSecret
from belljar.model.errors import HostError
from belljar.model.image import Image
from belljar.model.job import Job
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.worker.attempt import attempt
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.cancellation import JobCancelled
from belljar.node.worker.job_network import JobNetwork, Networking
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.plan import AttemptPlan, plan_attempt
from belljar.node.worker.retry import RetryTimes, retry_until_done
from belljar.node.worker.warm_ups import WarmUps
from belljar.settings import Settings

if TYPE_CHECKING:
    from belljar.node.worker.package_installer import InstalledPackages, Installer

T = TypeVar("T")


class Retry(Protocol):
    """Does a step, again if need be, and returns its result; errors of the `lasting` kinds are not tried again."""

    async def __call__(self, step: str, work: Callable[[], Awaitable[T]], *lasting: type[Exception]) -> T: ...


async def run_once(step: str, work: Callable[[], Awaitable[T]], *lasting: type[Exception]) -> T:
    """Do a step without a second try."""
    return await work()


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryUntilCancelled:
    """Tries a step again while the host, the store or the blobs refuse it. Raises JobCancelled when `cancel` is set."""

    retry_times: RetryTimes
    cancel: asyncio.Event
    #: Fields for the log.
    fields: dict[str, object] = field(default_factory=dict)

    async def __call__(self, step: str, work: Callable[[], Awaitable[T]], *lasting: type[Exception]) -> T:
        done = await retry_until_done(work, step, self.retry_times, self.cancel, lasting=lasting, **self.fields)
        if done is None:
            raise JobCancelled
        return done


@dataclass(frozen=True, kw_only=True, slots=True)
class JobInput:
    """A job's script and standard input, on this host."""

    script_disk: Path
    stdin: bytes
    secrets: tuple[JobSecret, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRun:
    """One job to run, with the parts that its caller provides."""

    job: Job
    #: Brings the job's input to this host.
    fetch: Callable[[], Awaitable[JobInput]]
    observer: AttemptObserver
    #: Stops the job at any point when set.
    cancel: asyncio.Event
    #: The key that the job holds its capacity under.
    holder: str = ""
    retry: Retry = run_once


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedJob:
    """Everything that attempts at one job share."""

    image: Image
    input: JobInput
    hypervisor: Hypervisor
    warm_up_steps: WarmUp
    packages: InstalledPackages | None = None


class JobRunner:
    """Runs the jobs of one process."""

    def __init__(
        self,
        settings: Settings,
        *,
        images: Images,
        choose_hypervisor: Callable[[Image], Awaitable[Hypervisor]],
        warm_ups: WarmUps,
        provisioner: MachineProvisioner,
        networking: Networking,
        installer: Installer | None = None,
        spare_mb: Callable[[], float] | None = None,
    ) -> None:
        """`spare_mb` returns the memory that the pool may keep. Without an `installer` the first use makes one."""
        self._settings = settings
        self._images = images
        self._choose_hypervisor = choose_hypervisor
        self._warm_ups = warm_ups
        self._provisioner = provisioner
        self._networking = networking
        self._installer = installer
        self._spare_mb = spare_mb

    @asynccontextmanager
    async def run(self, run: JobRun) -> AsyncIterator[AttemptEnd]:
        """Run a job in one attempt; the block handles how it ended while the machine is removed.

        Raises JobCancelled before there is a machine, MachineError, HostError, and other BelljarErrors when the job
        cannot be run here.
        """
        prepared = await self.install_packages(run, await self.prepare(run))
        async with self.attempt(run, prepared) as end:
            yield end

    async def prepare(self, run: JobRun) -> PreparedJob:
        """Verify the image, fetch the input, and choose what the job's machine runs on.

        Raises UnknownImage, DamagedImage, MissingTool, HostError, JobCancelled.
        """
        image, job_input = await run.retry("fetch_script", lambda: self._fetch(run))
        # Where no hypervisor works, waiting does not help.
        hypervisor = await run.retry("choose_hypervisor", lambda: self._choose_hypervisor(image), HostError)
        run.observer.on_hypervisor(hypervisor)
        warm_up_steps = await run.retry("prepare", lambda: self._warm_ups.of(image))
        return PreparedJob(image=image, input=job_input, hypervisor=hypervisor, warm_up_steps=warm_up_steps)

    async def _fetch(self, run: JobRun) -> tuple[Image, JobInput]:
        image = self._images.get_for_job(run.job.image, run.job.image_digest)
        await asyncio.to_thread(self._images.verify, image)
        return image, await run.fetch()

    async def install_packages(self, run: JobRun, prepared: PreparedJob) -> PreparedJob:
        """Install the packages that the script needs, if any. Raises LayerBuildError, MachineError, HostError."""
        if run.job.dependencies is None or not run.job.dependencies.requirements:
            return prepared
        from belljar.node.worker.package_installer import InstallRequest  # most jobs need not load it

        request = InstallRequest(
            job=run.job,
            image=prepared.image,
            script_disk=prepared.input.script_disk,
            hypervisor=prepared.hypervisor,
            warm_up_steps=prepared.warm_up_steps,
            observer=run.observer,
            cancel=run.cancel,
            holder=run.holder,
        )
        started = time.monotonic()
        try:
            installer = await self._opened_installer()
            return replace(prepared, packages=await installer.ensure_installed(request))
        finally:
            run.observer.on_phase("dependencies", (time.monotonic() - started) * 1000)

    async def _opened_installer(self) -> Installer:
        if self._installer is None:
            from belljar.node.worker.package_installer import Installer

            self._installer = Installer(self._settings, self._networking)
            await self._installer.clear()
        return self._installer

    @asynccontextmanager
    async def attempt(self, run: JobRun, prepared: PreparedJob) -> AsyncIterator[AttemptEnd]:
        """Run the job in a machine of its own; the block handles how it ended while the machine is removed.

        Raises UnknownLanguage, InvalidOption, MachineError, HostError, JobCancelled.
        """
        if self._spare_mb is not None:
            await self._provisioner.shrink_to(self._spare_mb())
        network = self._networking.for_job(run.job)
        network.observe({"job": run.job.id, "attempt": run.job.attempt}, run.observer.on_flows)
        plan = self._plan(run.job, prepared, network)
        machine_factory = partial(self._machine, run, prepared, network)
        observer = await _masked(run, prepared.input.secrets)
        async with attempt(plan, machine_factory, observer, run.cancel, network) as end:
            yield end

    def _plan(self, job: Job, prepared: PreparedJob, network: JobNetwork) -> AttemptPlan:
        plan = plan_attempt(
            job,
            prepared.image,
            prepared.input.script_disk,
            prepared.input.stdin,
            self._settings,
            network=network.has_device,
            env=network.environment,
            secrets=prepared.input.secrets,
        )
        return prepared.packages.apply_to(plan) if prepared.packages is not None else plan

    @asynccontextmanager
    async def _machine(
        self, run: JobRun, prepared: PreparedJob, network: JobNetwork, spec: MachineSpec
    ) -> AsyncIterator[ProvisionedMachine]:
        seconds = self._settings.boot_timeout_seconds

        def start() -> AbstractAsyncContextManager[ProvisionedMachine]:
            return network.machine(
                lambda slots: self._provisioner.machine(
                    prepared.hypervisor, spec, prepared.warm_up_steps, seconds, slots
                )
            )

        async with AsyncExitStack() as stack:
            yield await run.retry("start_machine", lambda: stack.enter_async_context(start()))


async def _masked(run: JobRun, secrets: tuple[JobSecret, ...]) -> AttemptObserver:
    """Return the observer of a job, which sees none of its secrets unless the job wants it so."""
    if not secrets or not run.job.mask_secrets:
        return run.observer
    from belljar.node.worker.masked_observer import MaskedObserver  # most jobs need not load it
    from belljar.node.worker.masking import Masker

    masker = await asyncio.to_thread(Masker.of, [secret.value for secret in secrets])
    return run.observer if masker is None else MaskedObserver(run.observer, masker)
