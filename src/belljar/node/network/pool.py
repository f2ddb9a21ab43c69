"""The pool of one process's slots: it keeps some ready, gives each to one machine, and removes all when it closes.

It must not change anything on the host before the first machine needs a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import structlog

from belljar.model.errors import DiskFull, HostError, MissingTool, NetworkError, NoNetwork
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network import nft
from belljar.node.network.attachment import Attachment
from belljar.node.network.backend import NetworkBackend, Slot
from belljar.node.network.flows.alerts import NO_RULES, AlertRules
from belljar.node.network.flows.verdicts import Verdicts
from belljar.node.network.flows.watch import FlowListener, FlowWatch
from belljar.node.network.kernel_backend import KernelBackend
from belljar.node.network.layout import FALLBACK_NAMESERVERS, Layout, build_layout
from belljar.node.network.netlink import read_host_networks, run_netlink
from belljar.node.network.policy import NetworkRule, Policy
from belljar.node.network.resolver import Resolver
from belljar.node.network.rootless import RootlessBackend, rootless_unavailable_reason
from belljar.node.network.traffic import Traffic
from belljar.settings.network import NetworkSettings
from belljar.system.background import report_failure, supervise
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

T = TypeVar("T")

_TUN = Path("/dev/net/tun")
_RESOLV_CONF = Path("/etc/resolv.conf")
_MAX_REFUSED_LISTED = 20
_FILL_DELAY_SECONDS = 0.05
#: Seconds between attempts to remove a slot: the host may lack file descriptors only for a while.
_REMOVE_PAUSES = (0.2, 1.0, 5.0, 30.0, 120.0)


def network_unavailable_reason() -> str | None:
    """Return why this process cannot give machines a network, and what to do; None when it can."""
    if not _TUN.exists():
        return "this host has no /dev/net/tun; load it with: modprobe tun"
    if os.geteuid() != 0 and (why := rootless_unavailable_reason()) is not None:
        return why
    try:
        nft.library()
    except MissingTool as error:
        return error.message
    return None


@dataclass(frozen=True, slots=True)
class _Setup:
    """An open backend and the layout of its slots."""

    layout: Layout
    backend: NetworkBackend


class SlotPool:
    """A pool of slots: an async context manager that belongs to one event loop."""

    def __init__(self, settings: NetworkSettings, exceptions: Iterable[NetworkRule] = ()) -> None:
        self._settings = settings
        self._exceptions = tuple(exceptions)
        self._owner = owner_name(os.getpid())
        self._ready: deque[Slot] = deque()
        self._setup_task: asyncio.Task[_Setup] | None = None
        self._slot_taken = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._removals: set[asyncio.Task[None]] = set()
        #: Slots given to machines, by namespace.
        self._slots_in_use: dict[Path, Slot] = {}

    async def __aenter__(self) -> SlotPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Remove every slot and the host's table."""
        self._closed.set()
        await uninterrupted(self._close())

    @property
    def ready(self) -> int:
        """Return how many slots are ready for a machine."""
        return len(self._ready)

    @property
    def removing(self) -> int:
        """Return how many used slots are being removed."""
        return len(self._removals)

    async def set_up(self) -> None:
        """Open the backend. Raises NoNetwork when this host cannot give any machine a network."""
        await self._get_setup()

    @asynccontextmanager
    async def with_network_slot(self) -> AsyncIterator[NetworkSlot]:
        """Give a slot to one machine, which must have ended at the block's end. Nothing passes before `with_policy`.

        Raises NoNetwork when this host cannot give any network, NetworkError when it cannot at the moment.
        """
        setup = await self._get_setup()
        slot = await self._claim(setup)
        try:
            network_slot = slot.network_slot()
            self._slots_in_use[network_slot.namespace] = slot
            try:
                yield network_slot
            finally:
                del self._slots_in_use[network_slot.namespace]
        finally:
            self._discard(slot)

    @asynccontextmanager
    async def with_policy(
        self,
        network_slot: NetworkSlot,
        policy: Policy,
        mbit: float | None = None,
        *,
        alert_rules: AlertRules | None = None,
        listener: FlowListener | None = None,
    ) -> AsyncIterator[Attachment]:
        """Apply a policy to a machine's slot and run its resolver while the block lasts. Once for each slot.

        `mbit` lowers the setting network_mbit for this slot, in megabits a second each way. Raises NetworkError.
        """
        setup, slot = await self._get_setup(), self._slots_in_use[network_slot.namespace]
        opening = asyncio.create_task(_run_in_thread(lambda: slot.apply_policy(policy, mbit)))
        try:
            resolver = Resolver(
                slot.dns_sockets,
                policy,
                blocked=setup.layout.blocked,
                nameservers=nameservers(self._settings),
                allow=lambda commands: _run_in_thread(lambda: slot.allow(commands)),
            )
            async with resolver:
                await asyncio.shield(opening)
                attachment = Attachment(network_slot, lambda: _read_traffic(slot, resolver))
                if not setup.layout.count_flows:
                    yield attachment
                    return
                verdicts = Verdicts(
                    policy=policy,
                    gateway=setup.layout.gateway,
                    blocked=setup.layout.blocked,
                    name_of=resolver.name_of,
                )
                watch = FlowWatch(lambda: _run_in_thread(slot.read_flows), verdicts, alert_rules or NO_RULES, listener)
                async with watch:
                    yield replace(attachment, flows=watch)
        finally:
            await uninterrupted(_settle(opening))

    @asynccontextmanager
    async def with_network(self, policy: Policy, mbit: float | None = None) -> AsyncIterator[Attachment]:
        """Give a slot with a policy to a machine that does not exist yet. Raises as both do."""
        async with self.with_network_slot() as network_slot, self.with_policy(network_slot, policy, mbit) as attachment:
            yield attachment

    async def _get_setup(self) -> _Setup:
        """Return the open backend. The first caller opens it, the others wait, unaffected by a cancelled one.

        A rootless backend whose processes died is replaced. Raises NoNetwork, NetworkError.
        """
        if self._closed.is_set():
            raise NetworkError("belljar is stopping and creates no more networks")
        if self._setup_task is None or _has_failed(self._setup_task):
            # The next caller tries again after a failure; those who waited get the error.
            self._setup_task = asyncio.create_task(self._set_up())
        elif (lost := _lost_backend(self._setup_task)) is not None:
            self._setup_task = asyncio.create_task(self._set_up(instead_of=lost))
        return await asyncio.shield(self._setup_task)

    async def _set_up(self, instead_of: _Setup | None = None) -> _Setup:
        if instead_of is not None:
            log.warning("network_backend_lost", reason="a process of the rootless backend died")
            await self._close_backend(instead_of)
        if (why := network_unavailable_reason()) is not None:
            raise NoNetwork(why)
        layout = build_layout(self._settings, await _run_in_thread(lambda: run_netlink(read_host_networks)))
        backend: NetworkBackend = (
            KernelBackend(self._owner, layout, self._exceptions)
            if os.geteuid() == 0
            else RootlessBackend(self._owner, layout, self._exceptions)
        )
        await _run_in_thread(backend.open)
        setup = _Setup(layout, backend)
        self._filler = asyncio.create_task(supervise("slot_filler", lambda: self._fill(setup)))
        return setup

    async def _claim(self, setup: _Setup) -> Slot:
        self._slot_taken.set()
        return self._ready.popleft() if self._ready else await self._create(setup)

    async def _create(self, setup: _Setup) -> Slot:
        """Create a slot; when the caller is cancelled meanwhile, keep it ready for others. Raises NetworkError."""

        def keep(slot: Slot) -> None:
            if self._is_current(setup):
                self._ready.append(slot)
            else:
                self._discard(slot)

        slot = await uninterrupted(_run_in_thread(setup.backend.create_slot), keep)
        if not self._is_current(setup):
            self._discard(slot)
            raise NetworkError("the network backend was replaced meanwhile; try again")
        return slot

    def _is_current(self, setup: _Setup) -> bool:
        """Return whether slots of this backend are still given out."""
        task = self._setup_task
        if self._closed.is_set() or task is None or not task.done() or _has_failed(task):
            return False
        return task.result() is setup

    async def _fill(self, setup: _Setup) -> None:
        """Keep slots ready. Raises NetworkError when none can be created; its supervisor restarts it."""
        while True:
            self._slot_taken.clear()
            while len(self._ready) < self._settings.network_slots:
                self._ready.append(await self._create(setup))
            await self._slot_taken.wait()
            # The claimer is about to open the slot's device; creating another slot would hold the kernel's lock.
            await asyncio.sleep(_FILL_DELAY_SECONDS)

    def _discard(self, slot: Slot) -> None:
        """Remove a used slot in the background."""
        task = asyncio.create_task(self._destroy(slot))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _destroy(self, slot: Slot) -> None:
        """Remove a slot, retrying until the pool is closed. Each failure is logged."""
        for pause in (*_REMOVE_PAUSES, None):
            try:
                await in_thread(slot.remove)
                return
            except Exception as error:  # noqa: BLE001 (on any error the slot still exists)
                last = pause is None or self._closed.is_set()
                report_failure("slot_removal", error, number=slot.number, gave_up=last)
                if last:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause)

    async def _close(self) -> None:
        if self._setup_task is not None:
            await asyncio.wait({self._setup_task})
            if not _has_failed(self._setup_task):
                await self._close_backend(self._setup_task.result())
            self._setup_task = None
        await self._wait_for_removals()

    async def _wait_for_removals(self) -> None:
        while self._removals:
            await asyncio.wait(set(self._removals))

    async def _close_backend(self, setup: _Setup) -> None:
        if self._filler is not None:
            self._filler.cancel()
            await asyncio.gather(self._filler, return_exceptions=True)
        while self._ready:
            self._discard(self._ready.popleft())
        if setup.backend.alive:
            await self._wait_for_removals()
        try:
            await in_thread(setup.backend.close)
        except Exception as error:  # noqa: BLE001 (the next start of belljar removes the leftovers)
            report_failure("network_close", error)


def _has_failed(task: asyncio.Task[_Setup]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _lost_backend(task: asyncio.Task[_Setup]) -> _Setup | None:
    """Return the setup whose backend has died; None otherwise."""
    if not task.done() or _has_failed(task):
        return None
    setup = task.result()
    return None if setup.backend.alive else setup


async def _run_in_thread(work: Callable[[], T]) -> T:
    """Return the result of blocking `work`; a cancelled caller waits for its end, so that no change stays half-done.

    Raises NetworkError, for an OSError too.
    """
    with network_errors():
        return await uninterrupted(in_thread(work))


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Raise the host's errors as NetworkError, with what to do about them."""
    try:
        with host_errors("change a network"):
            yield
    except HostError as error:
        if type(error) in (HostError, DiskFull):
            raise NetworkError(error.message) from error
        raise


async def _settle(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # retrieved, so that asyncio does not log it: the waiter got it too


async def _read_traffic(slot: Slot, resolver: Resolver) -> Traffic | None:
    try:
        traffic = await _run_in_thread(slot.read_traffic)
    except NetworkError as error:
        log.warning("traffic_read_failed", error=error.message)
        return None
    tried = [resolver.explain(each) for each in traffic.refused]
    refusals = resolver.refusals
    return replace(
        traffic,
        refused=tuple([*refusals.to_list(), *tried][:_MAX_REFUSED_LISTED]),
        refused_count=traffic.refused_count + refusals.total,
    )


def nameservers(settings: NetworkSettings, resolv_conf: Path = _RESOLV_CONF) -> tuple[IPv4Address, ...]:
    """Return the upstream name servers: the settings', else the host's own IPv4 ones and two public ones."""
    if settings.nameservers:
        return settings.nameservers
    servers = []
    try:
        lines = resolv_conf.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "nameserver":
            try:
                servers.append(IPv4Address(fields[1]))
            except ValueError:
                continue
    return (*servers[:3], *FALLBACK_NAMESERVERS)
