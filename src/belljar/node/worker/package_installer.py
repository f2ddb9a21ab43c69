"""The packages that a job's script needs, on its disk before the job has a machine: from the cache, or built now.

A job that needs packages which another job is building waits for that build, and builds them itself if it fails: the
other job may have been cancelled, or may have lost its network. The number of builds at once is bounded; the resources
of a build are settings.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from belljar.model.errors import LayerBuildError, NoNetwork
from belljar.model.image import Image
from belljar.model.job import Job
from belljar.model.script import Dependencies
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.job_network import Networking
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.package_builder import PackageBuild, build_layer, builder_resources
from belljar.node.worker.plan import AttemptPlan, ScriptDiskLayout
from belljar.packages.layers import LayerCache, PackageLayer
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

#: How often a job that waits for another's build checks whether it is done.
_POLL_SECONDS = 0.1
#: Each build has a machine of its own, beside those of jobs.
_MAX_BUILDS = 2
_MAX_LISTED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledPackages:
    """A script's disk that also holds its packages."""

    disk: Path
    layout: ScriptDiskLayout
    #: Whether the interpreter must start with the packages in place.
    at_start: bool

    def apply_to(self, plan: AttemptPlan) -> AttemptPlan:
        """Return the plan of the same attempt with the packages in its machine."""
        return replace(
            plan,
            machine=replace(plan.machine, script_disk=self.disk),
            layer=self.layout,
            # A waiting interpreter has started already, and would miss files that are read only at the start.
            command=replace(plan.command, prefork="") if self.at_start else plan.command,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallRequest:
    """A job whose script may need packages, and what its machine will be."""

    job: Job
    image: Image
    script_disk: Path
    hypervisor: Hypervisor
    warm_up_steps: WarmUp
    observer: AttemptObserver
    #: Set when the job is cancelled.
    cancel: asyncio.Event
    #: The key that the job holds its capacity under.
    holder: str = ""


class Installer:
    """Installs the packages of scripts. One for each process; all processes of a data folder share its layers."""

    def __init__(self, settings: Settings, networking: Networking, capacity: Capacity | None = None) -> None:
        """With a `capacity` builders wait for room in it, and a job that waits for its packages lends its own."""
        self._settings = settings
        self._networking = networking
        self._capacity = capacity
        self._layers = LayerCache(settings)
        self._building = asyncio.Semaphore(_MAX_BUILDS)
        #: Builders always boot: no snapshot has their shape.
        self._provisioner = MachineProvisioner(None)

    async def clear(self) -> None:
        """Remove what builds of killed processes left."""
        await self._layers.remove_stale()

    async def ensure_installed(self, request: InstallRequest) -> InstalledPackages | None:
        """Return the script's disk with its packages; None when it needs none, or when the job was cancelled.

        Raises LayerBuildError when they cannot be installed, MachineError, HostError.
        """
        needs = request.job.dependencies
        if needs is None or not needs.requirements:
            return None
        key = self._layers.key(needs.key, request.image.manifest.root.sha256)
        layer = self._layers.find(key)
        if layer is None:
            async with self._lent_capacity(request):
                layer = await self._await_or_build(key, needs, request)
        if layer is None:
            return None
        script_disk, installed = request.script_disk, layer.lock.installed
        with host_errors("make a disk with the script's packages"):
            disk = await asyncio.to_thread(self._layers.concatenate, request.job.script_id, script_disk, layer)
        layout = ScriptDiskLayout(
            script_bytes=script_disk.stat().st_size, layer_bytes=layer.disk.stat().st_size, path=installed.path
        )
        return InstalledPackages(disk=disk, layout=layout, at_start=installed.at_start)

    def _lent_capacity(self, request: InstallRequest) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._capacity is None else self._capacity.lent(request.holder, request.cancel)

    def _builder_capacity(self, request: InstallRequest) -> AbstractAsyncContextManager[bool]:
        if self._capacity is None:
            return nullcontext(True)
        resources = builder_resources(self._settings)
        return self._capacity.held(f"{request.holder} builder", resources, request.cancel)

    async def _await_or_build(self, key: str, needs: Dependencies, request: InstallRequest) -> PackageLayer | None:
        reason = ""
        while not request.cancel.is_set():
            last_reason, reason = reason, "waiting for other jobs whose packages are being installed"
            if not self._building.locked():
                async with self._building, self._layers.build_folder(key) as folder:
                    # The job that built before may have built this layer.
                    layer = self._layers.find(key)
                    if layer is not None:
                        return layer
                    if folder is not None:
                        return await self._build(needs, request, folder)
                reason = "waiting for another job that installs the same packages"
            if reason != last_reason:
                request.observer.on_build_notice(reason)
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await request.cancel.wait()
        return None

    async def _build(self, needs: Dependencies, request: InstallRequest, folder: Path) -> PackageLayer | None:
        started, notify = time.monotonic(), request.observer.on_build_notice
        notify(f"installing {_list(needs)} for the image {request.image.name}, required by {needs.origin}")
        try:
            async with self._builder_capacity(request) as admitted:
                if not admitted:
                    return None  # cancelled while it waited
                layer = await build_layer(self._package_build(needs, request, folder), self._settings)
        except NoNetwork as error:
            raise LayerBuildError(
                f"{needs.origin} requires packages, but the machine that installs them cannot have a network: "
                f"{error.message}; or put the packages into the script, or set dependencies to off"
            ) from error
        if layer is None:
            return None
        seconds = time.monotonic() - started
        count, size_mb = len(layer.lock.installed.packages), layer.disk.stat().st_size / 1e6
        packages = "1 package" if count == 1 else f"{count} packages"
        notify(f"installed {packages}, {size_mb:.0f} MB, in {seconds:.1f} s; kept for other jobs")
        log.info("layer_built", layer=layer.digest, packages=count, seconds=round(seconds, 2), job=request.job.id)
        return layer

    def _package_build(self, needs: Dependencies, request: InstallRequest, folder: Path) -> PackageBuild:
        job = request.job.model_copy(update={"egress": "packages"})
        network, boot_seconds = self._networking.for_job(job), self._settings.boot_timeout_seconds

        def machine(spec: MachineSpec) -> AbstractAsyncContextManager[ProvisionedMachine]:
            return network.machine(
                lambda slots: self._provisioner.machine(
                    request.hypervisor, spec, request.warm_up_steps, boot_seconds, slots
                )
            )

        return PackageBuild(
            job=job,
            dependencies=needs,
            image=request.image,
            machine_factory=machine,
            network=network,
            layers=self._layers,
            folder=folder,
            observer=request.observer,
            cancel=request.cancel,
        )


def _list(needs: Dependencies) -> str:
    shown = ", ".join(needs.requirements[:_MAX_LISTED])
    more = len(needs.requirements) - _MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
