"""Provides a sandbox's machine by the road that jobs take: image, hypervisor, pool, network, secrets."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace

import structlog

from belljar.link.sandboxes import SandboxLink
from belljar.link.secrets import JobSecret
from belljar.model.errors import HostError, MachineError, NoNetwork
from belljar.model.image import Image
from belljar.model.sandbox import Sandbox, SandboxStatus
from belljar.model.sandbox_errors import SnapshotUnusable
from belljar.model.sandbox_values import GuestUser
from belljar.model.secrets import SecretUse, SecretValue
from belljar.node.frozen.manifest import Manifest
from belljar.node.frozen.store import FrozenStore
from belljar.node.frozen.stored_parts import StoredParts
from belljar.node.guest.session import SessionRequest
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import Hypervisor, MachineSpec
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.machines.provision.shapes import round_up_shape
from belljar.node.sandboxes.held import HeldSandbox
from belljar.node.sandboxes.process import MachineSize
from belljar.node.sandboxes.process_table import CommandDefaults
from belljar.node.sandboxes.saved import SavedProcess, parse_processes
from belljar.node.worker.capacity import Capacity
from belljar.node.worker.context import WorkerContext
from belljar.node.worker.job_network import JobNetwork, Networking
from belljar.node.worker.masking import Masker
from belljar.node.worker.plan import WORKING_FOLDER, default_env

log = structlog.get_logger()

#: The part of a frozen machine that has the host's half of the session.
SESSION = "session"
#: Nothing of the user's has run in a machine that fails to start: it is tried once more.
_TRIES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedMachine:
    """A machine for a sandbox, whose session has not begun."""

    provisioned: ProvisionedMachine
    hypervisor: Hypervisor
    spec: MachineSpec
    #: What it continues from; None: it began with its image.
    base: Manifest | None
    #: The commands that it continues.
    saved: tuple[SavedProcess, ...]
    network: JobNetwork
    session_request: SessionRequest
    defaults: CommandDefaults
    size: MachineSize


class MachineStarter:
    """Starts the machines of one worker's sandboxes."""

    def __init__(
        self,
        context: WorkerContext,
        link: SandboxLink,
        *,
        store: FrozenStore,
        choose_hypervisor: Callable[[Image], Awaitable[Hypervisor]],
        networking: Networking,
        capacity: Capacity,
    ) -> None:
        self._context = context
        self._store = store
        self._link = link
        self._choose_hypervisor = choose_hypervisor
        self._networking = networking
        self._capacity = capacity

    async def start(self, held: HeldSandbox, stack: AsyncExitStack) -> StartedMachine:
        """Start a machine, or continue the frozen one that the sandbox is kept in; it ends with `stack`.

        Raises SnapshotUnusable, UnknownImage, DamagedImage, MissingTool, SecretMissing, NoNetwork, MachineError,
        HostError.
        """
        sandbox = held.sandbox
        image = self._context.images.get_for_job(sandbox.spec.image, sandbox.spec.image_digest)
        await asyncio.to_thread(self._context.images.verify, image)
        hypervisor = await self._choose_hypervisor(image)
        secrets = await self._link.sandbox_secrets(held.key) if sandbox.spec.secrets else ()
        provisioner = self._context.provisioner
        if provisioner.pool is not None:
            await provisioner.pool.shrink_to(self._capacity.spare_mb())
        network = self._networking.for_egress(sandbox.spec.egress, sandbox.spec.resources.network_mbit_per_second)
        spec = MachineSpec(
            image=image,
            shape=round_up_shape(**sandbox.spec.resources.model_dump(), network=network.has_device),
            script_disk=None,
            freezable=True,
        )
        frozen, saved = await self._open_frozen(sandbox, spec, hypervisor)
        provisioned = await self._provision(sandbox, spec, hypervisor, network, frozen, stack)
        values = {secret.name: secret.value for secret in secrets}
        user = sandbox.spec.user or GuestUser(uid=image.manifest.user.uid, gid=image.manifest.user.gid)
        return StartedMachine(
            provisioned=provisioned,
            hypervisor=hypervisor,
            spec=spec,
            base=None if frozen is None else frozen.manifest,
            saved=saved,
            network=network,
            session_request=SessionRequest(
                uid=user.uid,
                gid=user.gid,
                max_processes=self._context.settings.max_processes,
                secret_files={use.name: values[use.name] for use in sandbox.spec.secrets if use.form == "file"},
            ),
            defaults=replace(_defaults(sandbox, image, network, user, values), masker=await _masker(sandbox, secrets)),
            size=_size(sandbox, network),
        )

    async def _open_frozen(
        self, sandbox: Sandbox, spec: MachineSpec, hypervisor: Hypervisor
    ) -> tuple[StoredParts | None, tuple[SavedProcess, ...]]:
        """Return the frozen machine that the sandbox continues, and its commands. Raises SnapshotUnusable."""
        if sandbox.frozen is None:
            return None, ()
        project, frozen_id = sandbox.project, sandbox.frozen.id
        manifest = await in_thread(self._store.open, project, frozen_id)
        about = manifest.about
        if about.get("hypervisor") != hypervisor.identity:
            raise SnapshotUnusable(
                f"the snapshot {frozen_id} was made by another hypervisor, or another release of it, than this node "
                "has now; delete it"
            )
        if about.get("shape") != dataclasses.asdict(spec.shape) or about.get("image") != spec.image.manifest.digest:
            raise SnapshotUnusable(f"the snapshot {frozen_id} is of another image or shape; create it with its own")
        session = await in_thread(self._store.read_part, project, manifest, SESSION)
        is_copy = sandbox.status is SandboxStatus.CREATING
        return StoredParts(self._store, project, manifest, is_copy), parse_processes(session)

    async def _provision(
        self,
        sandbox: Sandbox,
        spec: MachineSpec,
        hypervisor: Hypervisor,
        network: JobNetwork,
        frozen: StoredParts | None,
        stack: AsyncExitStack,
    ) -> ProvisionedMachine:
        warm_up_steps = (await self._context.warm_ups.of(spec.image)).for_sandbox()
        seconds, provisioner = self._context.settings.boot_timeout_seconds, self._context.provisioner

        def start() -> AbstractAsyncContextManager[ProvisionedMachine]:
            if frozen is not None:
                return network.machine(lambda slots: provisioner.restored(hypervisor, spec, frozen, seconds, slots))
            return network.machine(lambda slots: provisioner.machine(hypervisor, spec, warm_up_steps, seconds, slots))

        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                return await stack.enter_async_context(start())
            except (MachineError, HostError) as error:
                if not tries_left or isinstance(error, NoNetwork):
                    raise
                log.warning("machine_not_started", sandbox=sandbox.id, error=error.message)
        raise AssertionError("unreachable")


async def _masker(sandbox: Sandbox, secrets: Collection[JobSecret]) -> Masker | None:
    """Return the search for the sandbox's secrets in output; None when there is nothing to mask."""
    if not secrets or not sandbox.spec.mask_secrets:
        return None
    return await asyncio.to_thread(Masker.of, [secret.value for secret in secrets])


def _size(sandbox: Sandbox, network: JobNetwork) -> MachineSize:
    resources = sandbox.spec.resources
    return MachineSize(resources.vcpus, resources.memory_mb, resources.disk_mb, network.has_device)


def _defaults(
    sandbox: Sandbox, image: Image, network: JobNetwork, user: GuestUser, values: dict[str, SecretValue]
) -> CommandDefaults:
    uses: Collection[SecretUse] = sandbox.spec.secrets
    variables = {use.variable: values[use.name] for use in uses if use.form == "env" and use.variable is not None}
    paths = {use.variable: use.path for use in uses if use.form == "file" and use.variable is not None}
    home = {"HOME": "/root"} if user.uid == 0 else {}
    env = {**default_env(image.manifest), **home, **network.environment, **sandbox.spec.env, **paths}
    return CommandDefaults(
        env={name: value for name, value in env.items() if name not in variables},
        cwd=image.manifest.working_folder or WORKING_FOLDER,
        user=user,
        secret_env=variables,
    )
