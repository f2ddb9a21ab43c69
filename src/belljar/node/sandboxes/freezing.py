"""Freezes the machine of a sandbox: suspend the session, stop the guest, keep memory and disks, then end it or go on.

Until the frozen machine is kept, a failure lets the sandbox go on; what kills this process before then loses the
sandbox. Afterwards it is paused, whatever dies: the next process of this node reports what this one could not.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import structlog

from belljar.link.leases import NodeIdentity
from belljar.link.sandboxes import SandboxLease, SandboxLink
from belljar.model.errors import BelljarError, HostError, MachineError, host_error
from belljar.model.sandbox import EndReason, FrozenState, SandboxEnd
from belljar.node.frozen.manifest import Manifest
from belljar.node.frozen.parts import BytesPart
from belljar.node.frozen.store import FrozenStore
from belljar.node.guest.connection import SILENCE_SECONDS
from belljar.node.machines.host.threads import machine_threads
from belljar.node.machines.protocol import MachineSpec
from belljar.node.machines.provision.network_slot import configure_network
from belljar.node.machines.provision.warm_up import resume
from belljar.node.machines.timings import StepTimings
from belljar.node.sandboxes.freezes import Freeze
from belljar.node.sandboxes.held import HeldSandbox, end_of
from belljar.node.sandboxes.machine_start import SESSION
from belljar.node.sandboxes.running import RunningSandbox
from belljar.node.sandboxes.usage import report_last
from belljar.node.worker.retry import RetryTimes, retry_until_written
from belljar.system.background import report_failure

log = structlog.get_logger()


class Freezer:
    """Freezes the machines of one worker's sandboxes."""

    def __init__(
        self, link: SandboxLink, store: FrozenStore, retry_times: RetryTimes, boot_timeout_seconds: float
    ) -> None:
        self._link = link
        self._store = store
        self._retry_times = retry_times
        self._boot_timeout_seconds = boot_timeout_seconds

    async def carry_out(
        self, held: HeldSandbox, running: RunningSandbox, freeze: Freeze
    ) -> FrozenState | SandboxEnd | None:
        """Carry out a request, as `_carry_out` does; what it makes is not removed before that is reported."""
        with self._store.unreported(freeze.request.id):
            return await self._carry_out(held, running, freeze)

    async def _carry_out(
        self, held: HeldSandbox, running: RunningSandbox, freeze: Freeze
    ) -> FrozenState | SandboxEnd | None:
        """Carry out a request, and answer its caller. Return what a paused sandbox is kept in; None when it goes on.

        A SandboxEnd says that the machine is of no more use. Raises LeaseLost.
        """
        timings = StepTimings()
        if freeze.request.pause:
            await self._write(lambda: self._link.sandbox_pausing(held.key), "sandbox_pausing", held)
        try:
            await running.machine.suspend()
        except MachineError as error:
            return _dead(freeze, error)
        timings.record("suspend")
        try:
            frozen = await self._keep(held, running, freeze, timings)
        except Exception as error:  # noqa: BLE001 (whatever it is, the machine is whole and goes on)
            return await self._go_on(held, running, freeze, _failure(held, error))
        if not freeze.request.pause:
            return await self._go_on(held, running, freeze, frozen)
        held.is_paused = True
        # While the lease is held: a pause must not hide what the machine talked to.
        await running.flow_reports.finish(await running.started.network.finish_flows())
        await report_last(self._link, held, running.machine)
        await self._write(lambda: self._link.sandbox_paused(held.key, frozen), "sandbox_paused", held)
        held.lease.release()
        timings.record("report")
        log.info("sandbox_paused", **held.ids, snapshot=frozen.id, stored_bytes=frozen.stored_bytes, **timings.phases)
        freeze.finish(frozen)
        return frozen

    async def _keep(
        self, held: HeldSandbox, running: RunningSandbox, freeze: Freeze, timings: StepTimings
    ) -> FrozenState:
        """Stop the guest, and write everything of it to the disk; the guest stays stopped."""
        started, request = running.started, freeze.request
        stopped = threading.Event()
        async with started.provisioned.machine.frozen() as parts:
            timings.record("stop")
            sources = [*parts, BytesPart(SESSION, running.machine.saved())]
            about = about_machine(held, started.spec, started.hypervisor.identity, is_pause=request.pause)
            manifest = await machine_threads.run_to_end(
                lambda: self._store.write(
                    held.sandbox.project, request.id, about, sources, started.base, is_stopped=stopped.is_set
                ),
                stop=stopped.set,
            )
            timings.record("keep")
        return frozen_state(manifest, held.key.node.name)

    async def _go_on(
        self, held: HeldSandbox, running: RunningSandbox, freeze: Freeze, outcome: FrozenState | BelljarError
    ) -> SandboxEnd | None:
        """Let the machine continue, and then answer the caller."""
        provisioned = running.started.provisioned
        try:
            await provisioned.machine.thaw()
            connection = await resume(provisioned.machine, self._boot_timeout_seconds, silence_seconds=SILENCE_SECONDS)
            await configure_network(connection, provisioned.slot)
            await running.continue_in(connection.resume_session())
        except (MachineError, HostError) as error:
            return _dead(freeze, error)
        if freeze.request.pause:
            report, machine = running.report, running.machine
            await self._write(lambda: self._link.sandbox_running(held.key, report, machine), "sandbox_running", held)
        if isinstance(outcome, FrozenState):
            log.info("sandbox_frozen", **held.ids, snapshot=outcome.id, stored_bytes=outcome.stored_bytes)
            freeze.finish(outcome)
        else:
            freeze.fail(outcome)
        return None

    async def _write(self, write: Callable[[], Awaitable[object]], what: str, held: HeldSandbox) -> None:
        await retry_until_written(write, what, self._retry_times, **held.ids)


def _failure(held: HeldSandbox, error: Exception) -> BelljarError:
    """Return why the machine was not kept, as the error for the caller."""
    if isinstance(error, OSError):
        error = host_error(error, "keep a frozen sandbox")
    if not isinstance(error, BelljarError):
        report_failure("freeze_sandbox", error, **held.ids)
        return HostError("the sandbox was not frozen: internal error; see the server's log")
    log.warning("sandbox_not_frozen", **held.ids, error=error.message)
    return error


def _dead(freeze: Freeze, error: BelljarError) -> SandboxEnd:
    end = end_of(EndReason.MACHINE_DIED, f"its machine did not survive being frozen: {error.message}")
    freeze.fail(MachineError(end.message))
    return end


def about_machine(held: HeldSandbox, spec: MachineSpec, identity: str, *, is_pause: bool) -> dict[str, Any]:
    """Return what a manifest tells of a machine: what must be equal where it is restored, and whose it was."""
    return {
        "hypervisor": identity,
        "image": spec.image.manifest.digest,
        "shape": dataclasses.asdict(spec.shape),
        "frozen_at": time.time(),
        "lease": [held.key.sandbox_id, held.key.fence, held.key.node.name, held.key.node.incarnation],
        "pause": is_pause,
    }


def frozen_state(manifest: Manifest, node: str) -> FrozenState:
    """Return a frozen machine as the control plane knows it."""
    return FrozenState(id=manifest.id, node=node, stored_bytes=manifest.stored_bytes())


def pauses(manifests: Iterable[Manifest]) -> list[tuple[SandboxLease, FrozenState]]:
    """Return the frozen machines that a sandbox was paused into, with the lease under which that was done."""
    found = []
    for manifest in manifests:
        if manifest.about.get("pause"):
            sandbox_id, fence, node, incarnation = manifest.about["lease"]
            lease = SandboxLease(sandbox_id, fence, NodeIdentity(node, incarnation))
            found.append((lease, frozen_state(manifest, node)))
    return found
