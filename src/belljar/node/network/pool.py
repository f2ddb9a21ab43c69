"""The slots of one process: some are kept ready, each is given to one machine, and none outlives the pool.

Nothing of the host is changed before the first machine asks for a network.
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
from belljar.node.network.backend import AnySlot, Host
from belljar.node.network.host import HostSide
from belljar.node.network.layout import FALLBACK_NAMESERVERS, Layout, lay_out
from belljar.node.network.links import host_facts, netlink
from belljar.node.network.policy import NetworkRule, Policy
from belljar.node.network.resolver import Resolver
from belljar.node.network.rootless import RootlessBackend, why_no_stand_in
from belljar.node.network.traffic import Traffic
from belljar.settings.network import NetworkSettings
from belljar.system.background import report_failure, supervise
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

T = TypeVar("T")

_TUN = Path("/dev/net/tun")
_RESOLV_CONF = Path("/etc/resolv.conf")
_MAX_REFUSED_SHOWN = 20
_REST_SECONDS = 0.05
#: Pauses between tries to destroy a slot that could not be destroyed: the host may have too few files just now.
_REMOVE_PAUSES = (0.2, 1.0, 5.0, 30.0, 120.0)


def why_no_network() -> str | None:
    """Why this process cannot give machines a network, with what to do; None when it can."""
    if not _TUN.exists():
        return "this host has no /dev/net/tun; load it with: modprobe tun"
    if os.geteuid() != 0 and (why := why_no_stand_in()) is not None:
        return why
    try:
        nft.library()
    except MissingTool as error:
        return error.message
    return None


@dataclass(frozen=True, slots=True)
class _Ground:
    """What slots stand on: how this host is laid out, and its own side of them."""

    layout: Layout
    host: Host


class SlotPool:
    """Belongs to one event loop, and is to be closed, as an async context manager is."""

    def __init__(self, settings: NetworkSettings, excepted: Iterable[NetworkRule] = ()) -> None:
        self._settings = settings
        self._excepted = tuple(excepted)
        self._owner = owner_name(os.getpid())
        self._ready: deque[AnySlot] = deque()
        self._setting_up: asyncio.Task[_Ground] | None = None
        self._more = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        #: By the namespace, which no two have.
        self._plugged: dict[Path, AnySlot] = {}

    async def __aenter__(self) -> SlotPool:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Destroy every slot and take the host's table away."""
        self._closed.set()
        await uninterrupted(self._close())

    @property
    def ready(self) -> int:
        """How many slots wait for a machine."""
        return len(self._ready)

    @property
    def leaving(self) -> int:
        """How many used slots are being destroyed."""
        return len(self._leaving)

    async def set_up(self) -> None:
        """Have the host's side ready. Raises NoNetwork when this host cannot give any machine a network."""
        await self._ground()

    @asynccontextmanager
    async def with_network_slot(self) -> AsyncIterator[NetworkSlot]:
        """A slot for one machine, which must have ended when the block does. Nothing passes until it is `opened`.

        Raises NoNetwork when this host cannot give any, NetworkError when it cannot just now.
        """
        ground = await self._ground()
        slot = await self._take(ground)
        try:
            described = slot.described()
            self._plugged[described.namespace] = slot
            try:
                yield described
            finally:
                del self._plugged[described.namespace]
        finally:
            self._leave(slot)

    @asynccontextmanager
    async def opened(self, place: NetworkSlot, policy: Policy, mbit: float | None = None) -> AsyncIterator[Attachment]:
        """Let through what the policy allows, and answer names while the block lasts. Once for each slot.

        `mbit` bounds it further than the setting network_mbit does, in megabits a second each way. Raises NetworkError.
        """
        ground, slot = await self._ground(), self._plugged[place.namespace]
        opening = asyncio.create_task(_changed(lambda: slot.open_for(policy, mbit)))
        try:
            resolver = Resolver(
                slot.ears,
                policy,
                never=ground.layout.never,
                nameservers=nameservers(self._settings),
                admit=lambda commands: _changed(lambda: slot.admit(commands)),
            )
            async with resolver:
                await asyncio.shield(opening)
                yield Attachment(place, lambda: _read(slot, resolver))
        finally:
            await uninterrupted(_ended(opening))

    @asynccontextmanager
    async def attached(self, policy: Policy, mbit: float | None = None) -> AsyncIterator[Attachment]:
        """Both at once, for a machine that does not exist yet."""
        async with self.with_network_slot() as place, self.opened(place, policy, mbit) as attachment:
            yield attachment

    async def _ground(self) -> _Ground:
        """What slots stand on, set up by the first who asks; the others wait, and who is cancelled harms none.

        A stand-in for the host may die; then it is set up anew for those who come.
        """
        if self._closed.is_set():
            raise NetworkError("belljar is stopping: it makes no more networks")
        if self._setting_up is None or _failed(self._setting_up):
            # What failed is tried again by whoever comes next, and by nobody who waited for it.
            self._setting_up = asyncio.create_task(self._set_up())
        elif (lost := _lost(self._setting_up)) is not None:
            self._setting_up = asyncio.create_task(self._set_up(instead_of=lost))
        return await asyncio.shield(self._setting_up)

    async def _set_up(self, instead_of: _Ground | None = None) -> _Ground:
        if instead_of is not None:
            log.warning("networks_lost", reason="the process that held them died")
            await self._abandon(instead_of)
        if (why := why_no_network()) is not None:
            raise NoNetwork(why)
        layout = lay_out(self._settings, await _changed(lambda: netlink(host_facts)))
        host: Host = (
            HostSide(self._owner, layout, self._excepted)
            if os.geteuid() == 0
            else RootlessBackend(self._owner, layout, self._excepted)
        )
        await _changed(host.open)
        ground = _Ground(layout, host)
        self._filling = asyncio.create_task(supervise("slot_filler", lambda: self._keep_filled(ground)))
        return ground

    async def _take(self, ground: _Ground) -> AnySlot:
        self._more.set()
        return self._ready.popleft() if self._ready else await self._make(ground)

    async def _make(self, ground: _Ground) -> AnySlot:
        """A new slot; one whose maker is cancelled meanwhile is kept for others. Raises NetworkError."""

        def keep(slot: AnySlot) -> None:
            if self._is_current(ground):
                self._ready.append(slot)
            else:
                self._leave(slot)

        slot = await uninterrupted(_changed(ground.host.make_slot), keep)
        if not self._is_current(ground):
            self._leave(slot)
            raise NetworkError("the networks of this host were set up anew meanwhile; try again")
        return slot

    def _is_current(self, ground: _Ground) -> bool:
        """Whether slots of this host's side are still given out."""
        task = self._setting_up
        if self._closed.is_set() or task is None or not task.done() or _failed(task):
            return False
        return task.result() is ground

    async def _keep_filled(self, ground: _Ground) -> None:
        """Have slots ready. Raises NetworkError when none can be made; to be called again after a pause."""
        while True:
            self._more.clear()
            while len(self._ready) < self._settings.network_slots:
                self._ready.append(await self._make(ground))
            await self._more.wait()
            # Whoever claimed the slot is about to open its device; making another would hold the kernel's lock.
            await asyncio.sleep(_REST_SECONDS)

    def _leave(self, slot: AnySlot) -> None:
        """Destroy a used slot, beside whatever comes next."""
        task = asyncio.create_task(self._destroy(slot))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _destroy(self, slot: AnySlot) -> None:
        """Destroy a slot, at the latest try when the pool is closed. What then still stays is told in the log."""
        for pause in (*_REMOVE_PAUSES, None):
            try:
                await in_thread(slot.remove)
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, the slot is still there)
                last = pause is None or self._closed.is_set()
                report_failure("slot_removal", error, number=slot.number, given_up=last)
                if last:
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause)

    async def _close(self) -> None:
        if self._setting_up is not None:
            await asyncio.wait({self._setting_up})
            if not _failed(self._setting_up):
                await self._abandon(self._setting_up.result())
            self._setting_up = None
        await self._all_left()

    async def _all_left(self) -> None:
        while self._leaving:
            await asyncio.wait(set(self._leaving))

    async def _abandon(self, ground: _Ground) -> None:
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        while self._ready:
            self._leave(self._ready.popleft())
        if ground.host.alive:
            await self._all_left()
        try:
            await in_thread(ground.host.close)
        except Exception as error:  # noqa: BLE001 (the next start of belljar removes what is left)
            report_failure("network_close", error)


def _failed(setting_up: asyncio.Task[_Ground]) -> bool:
    return setting_up.done() and (setting_up.cancelled() or setting_up.exception() is not None)


def _lost(setting_up: asyncio.Task[_Ground]) -> _Ground | None:
    """What was set up and is no more."""
    if not setting_up.done() or _failed(setting_up):
        return None
    ground = setting_up.result()
    return None if ground.host.alive else ground


async def _changed(work: Callable[[], T]) -> T:
    """Return what blocking `work` returns; who is cancelled waits for it too, so that nothing is left half-done.

    Raises NetworkError for an OSError too.
    """
    with network_errors():
        return await uninterrupted(in_thread(work))


@contextlib.contextmanager
def network_errors() -> Iterator[None]:
    """Raise what the host refuses as NetworkError, with what to do about it."""
    try:
        with host_errors("change a network"):
            yield
    except HostError as error:
        if type(error) in (HostError, DiskFull):
            raise NetworkError(error.message) from error
        raise


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # whoever waited for it was told; nobody else is


async def _read(slot: AnySlot, resolver: Resolver) -> Traffic | None:
    try:
        traffic = await _changed(slot.traffic)
    except NetworkError as error:
        log.warning("traffic_not_read", error=error.message)
        return None
    tried = [resolver.explained(each) for each in traffic.refused]
    refusals = resolver.refusals
    return replace(
        traffic,
        refused=tuple([*refusals.listed(), *tried][:_MAX_REFUSED_SHOWN]),
        refused_count=traffic.refused_count + refusals.total,
    )


def nameservers(settings: NetworkSettings, resolv_conf: Path = _RESOLV_CONF) -> tuple[IPv4Address, ...]:
    """Whom resolvers ask: the settings', else the host's own IPv4 ones and then two public ones."""
    if settings.nameservers:
        return settings.nameservers
    found = []
    try:
        lines = resolv_conf.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(IPv4Address(words[1]))
            except ValueError:
                continue
    return (*found[:3], *FALLBACK_NAMESERVERS)
