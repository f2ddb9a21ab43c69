"""What a job's script needs, on its disk before the job has a machine: found, or built while others wait for it.

A job that wants what another is building waits for that, and builds it itself when the other did not succeed: it may
have been cancelled, or lost its network. How many build at once is bounded; what a build may take is a setting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from belljar.model.errors import LayerBuildError, NoNetwork
from belljar.model.image import Image
from belljar.model.job import Job
from belljar.model.script import Dependencies
from belljar.node.machines.protocol import Hypervisor
from belljar.node.network.attachment import Attachment
from belljar.node.worker.attempt import AttemptPlan, ScriptDiskLayout
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.job_network import network_use, told
from belljar.node.worker.package_builder import Build, BuildObserver, build_layer, builder_resources
from belljar.packages.layers import Layer, Layers
from belljar.settings import Settings
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

#: How often who waits for another's build looks whether it is done.
_LOOK_SECONDS = 0.1
#: Each takes a machine of its own, beside those of jobs.
_MAX_BUILDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledPackages:
    """A script's disk with what was installed for it behind it."""

    disk: Path
    laid: ScriptDiskLayout
    #: Whether its interpreter must start with the packages there.
    at_start: bool

    def on(self, plan: AttemptPlan) -> AttemptPlan:
        """The plan of the same attempt with the packages in its machine."""
        return replace(
            plan,
            machine=replace(plan.machine, script_disk=self.disk),
            layer=self.laid,
            # What is read only at an interpreter's start is missed by one that waits.
            command=replace(plan.command, prefork="") if self.at_start else plan.command,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class InstallRequest:
    """A job whose script may need packages, and what its machine will be."""

    job: Job
    image: Image
    script_disk: Path
    hypervisor: Hypervisor
    onlooker: BuildObserver
    #: Set when nobody wants the job any more.
    cancel: asyncio.Event
    #: What the job holds its capacity under.
    holder: str = ""


class Installer:
    """Gives scripts what they need. One for each process; layers are shared by all processes of a data folder."""

    def __init__(
        self,
        settings: Settings,
        attached: Callable[[Job], AbstractAsyncContextManager[Attachment | None]],
        capacity: Capacity | None = None,
    ) -> None:
        """`attached` gives a job its network while a block lasts.

        With a `capacity` builders wait for room in it, and a job that waits for its packages gives up its own.
        """
        self._settings = settings
        self._attached = attached
        self._capacity = capacity
        self._layers = Layers(settings)
        self._building = asyncio.Semaphore(_MAX_BUILDS)

    async def clear(self) -> None:
        """Remove what killed processes left of their builds."""
        await self._layers.clear()

    async def provide(self, wanted: InstallRequest) -> InstalledPackages | None:
        """The script's disk with all that it asks for; None when it asks for nothing, or when it was cancelled.

        Raises LayerBuildError when it cannot be had, MachineError, HostError.
        """
        needs = wanted.job.dependencies
        if needs is None or not needs.requirements:
            return None
        key = self._layers.key(needs.key, wanted.image.manifest.root.sha256)
        layer = self._layers.find(key)
        if layer is None:
            async with self._lent(wanted):
                layer = await self._await_or_build(key, needs, wanted)
        if layer is None:
            return None
        script_disk, installed = wanted.script_disk, layer.lock.installed
        with host_errors("make a disk with the script's packages"):
            disk = await asyncio.to_thread(self._layers.lay, wanted.job.script_id, script_disk, layer)
        laid = ScriptDiskLayout(
            script_bytes=script_disk.stat().st_size, layer_bytes=layer.disk.stat().st_size, path=installed.path
        )
        return InstalledPackages(disk=disk, laid=laid, at_start=installed.at_start)

    def _lent(self, wanted: InstallRequest) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self._capacity is None else self._capacity.lent(wanted.holder, wanted.cancel)

    def _room(self, wanted: InstallRequest) -> AbstractAsyncContextManager[bool]:
        if self._capacity is None:
            return nullcontext(True)
        resources = builder_resources(self._settings)
        return self._capacity.held(f"{wanted.holder} builder", resources, wanted.cancel)

    async def _await_or_build(self, key: str, needs: Dependencies, wanted: InstallRequest) -> Layer | None:
        why = ""
        while not wanted.cancel.is_set():
            before, why = why, "waiting for other jobs whose packages are being installed"
            if not self._building.locked():
                async with self._building, self._layers.building(key) as work:
                    # Whoever had the turn before may have built it.
                    layer = self._layers.find(key)
                    if layer is not None:
                        return layer
                    if work is not None:
                        return await self._build(needs, wanted, work)
                why = "waiting for another job that installs the same packages"
            if why != before:
                wanted.onlooker.build_notice(why)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await wanted.cancel.wait()
        return None

    async def _build(self, needs: Dependencies, wanted: InstallRequest, work: Path) -> Layer | None:
        started, onlooker = time.monotonic(), wanted.onlooker
        onlooker.build_notice(f"installing {_list(needs)} for the image {wanted.image.name}, as {needs.origin} asks")
        builder = wanted.job.model_copy(update={"egress": "packages"})
        try:
            async with self._room(wanted) as admitted:
                if not admitted:
                    return None  # cancelled while it waited
                async with self._attached(builder) as network:
                    assert network is not None
                    build = Build(
                        needs=needs,
                        image=wanted.image,
                        hypervisor=wanted.hypervisor,
                        network=network,
                        refusals=lambda traffic: told(network_use(traffic), builder),
                        layers=self._layers,
                        work=work,
                        onlooker=onlooker,
                        cancel=wanted.cancel,
                    )
                    layer = await build_layer(build, self._settings)
        except NoNetwork as error:
            raise LayerBuildError(
                f"{needs.origin} asks for packages, and the machine that fetches them cannot have a network: "
                f"{error.message}; or put the packages into the script, or set dependencies to off"
            ) from error
        if layer is None:
            return None
        seconds = time.monotonic() - started
        count, size_mb = len(layer.lock.installed.packages), layer.disk.stat().st_size / 1e6
        packages = "1 package" if count == 1 else f"{count} packages"
        onlooker.build_notice(f"installed {packages}, {size_mb:.0f} MB, in {seconds:.1f} s; kept for other jobs")
        log.info("layer_built", layer=layer.digest, packages=count, seconds=round(seconds, 2), job=wanted.job.id)
        return layer


def _list(needs: Dependencies) -> str:
    shown = ", ".join(needs.requirements[:8])
    more = len(needs.requirements) - 8
    return f"{shown} and {more} more" if more > 0 else shown
