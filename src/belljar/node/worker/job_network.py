"""The networks of a worker's jobs: from what a job may reach to a slot for its machine, and back to what it used."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from belljar.control.jobs.egress_limit import package_destinations, package_environment
from belljar.model.egress import Destination, Egress, parse_destination, parse_egress
from belljar.model.errors import InvalidOption
from belljar.model.job import Job, NetworkUse, Refusal
from belljar.node.machines.provision.network_slot import SlotFactory
from belljar.node.machines.provision.provisioner import ProvisionedMachine
from belljar.node.network.attachment import Attachment
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.traffic import Refused, Traffic
from belljar.settings import Settings

if TYPE_CHECKING:
    from belljar.node.network.pool import SlotPool


class Networking:
    """An async context manager; nothing of the host is changed before the first job wants a network."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._excepted = _excepted(settings)
        self._pool: SlotPool | None = None

    async def __aenter__(self) -> Networking:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            await self._pool.__aexit__(kind, error, trace)

    def of(self, job: Job) -> JobNetwork:
        """The job's network, before there is a machine."""
        egress = parse_egress(job.egress)
        if egress.kind == "none":
            return JobNetwork(None, None, None, {})
        environment = package_environment(self._settings) if egress.kind == "packages" else {}
        return JobNetwork(self._slots(), self._policy(egress), job.resources.network_mbit_per_second, environment)

    @asynccontextmanager
    async def attached(self, job: Job) -> AsyncIterator[Attachment | None]:
        """A network for a machine that its user boots: opened for the job at once. None when the job wants none.

        Raises NoNetwork, NetworkError.
        """
        network = self.of(job)
        if network.slots is None or network.policy is None:
            yield None
            return
        async with network.slots.attached(network.policy, network.mbit) as attachment:
            yield attachment

    def _slots(self) -> SlotPool:
        if self._pool is None:
            from belljar.node.network.pool import SlotPool  # netlink and DNS take 0.2 s to load

            self._pool = SlotPool(self._settings, self._excepted)
        return self._pool

    def _policy(self, egress: Egress) -> Policy:
        if egress.kind == "open":
            return Policy(open=True)
        if egress.kind == "packages":
            return policy_of(package_destinations(self._settings), self._excepted)
        return policy_of(egress.destinations)


class JobNetwork:
    """What one job's machine is plugged into, and what it reaches there. For one attempt."""

    def __init__(
        self, slots: SlotPool | None, policy: Policy | None, mbit: float | None, environment: dict[str, str]
    ) -> None:
        self.slots, self.policy, self.mbit = slots, policy, mbit
        self._attachment: Attachment | None = None
        #: Variables that lead package managers to the mirrors.
        self.environment = environment

    @property
    def wanted(self) -> bool:
        """Whether the job's machine has a network device."""
        return self.slots is not None

    @asynccontextmanager
    async def taking(
        self, take: Callable[[SlotFactory | None], AbstractAsyncContextManager[ProvisionedMachine]]
    ) -> AsyncIterator[ProvisionedMachine]:
        """The machine that `take` gives, and its slot opened for the job: no sooner, and before anything of it runs.

        Raises NoNetwork, NetworkError, and what `take` does.
        """
        if self.slots is None or self.policy is None:
            async with take(None) as ready:
                yield ready
            return
        await self.slots.set_up()
        async with take(self.slots.with_network_slot) as ready:
            assert ready.slot is not None
            started = time.monotonic()
            async with self.slots.opened(ready.slot, self.policy, self.mbit) as attachment:
                self._attachment = attachment
                ready.phases["network"] = round((time.monotonic() - started) * 1000, 3)
                yield ready

    async def traffic(self) -> Traffic | None:
        """What the job's machine sent and got so far; None when it has no network, or that cannot be read."""
        return await self._attachment.traffic() if self._attachment is not None else None


def policy_of(destinations: tuple[Destination, ...], excepted: tuple[NetworkRule, ...] = ()) -> Policy:
    """Exactly these destinations, as a slot enforces them."""
    return Policy(
        names=tuple(NameRule(each.name, each.below, each.port) for each in destinations if each.name is not None),
        networks=tuple(NetworkRule(each.network, each.port) for each in destinations if each.network is not None),
        excepted=excepted,
    )


def _excepted(settings: Settings) -> tuple[NetworkRule, ...]:
    """Private places that jobs under `packages` may reach. Raises InvalidOption when the setting is malformed."""
    found = []
    for entry in settings.package_private_networks:
        try:
            destination = parse_destination(entry, private=True)
        except ValueError as error:
            raise InvalidOption(f"the setting package_private_networks is wrong: {error}") from None
        if destination.network is None:
            raise InvalidOption(f"the setting package_private_networks holds {entry!r}; give addresses or networks")
        found.append(NetworkRule(destination.network, destination.port))
    return tuple(found)


def network_use(traffic: Traffic | None) -> NetworkUse:
    """What of a machine's traffic the job's record shows."""
    if traffic is None:
        return NetworkUse()
    return NetworkUse(
        refused_count=traffic.refused_count,
        refused=tuple(_refusal(each) for each in traffic.refused),
        limited_count=traffic.limited_count,
        forged_count=traffic.forged_count,
    )


def _refusal(refused: Refused) -> Refusal:
    return Refusal(
        name=refused.name,
        address=str(refused.address) if refused.address is not None else None,
        port=refused.port,
        protocol=refused.protocol,
        always_blocked=refused.never,
        count=refused.count,
    )


def told(use: NetworkUse, job: Job) -> Iterator[str]:
    """Sentences for the job's log: what it could not reach, and why."""
    egress = str(parse_egress(job.egress))
    allowed = egress if len(egress) <= 120 else f"{egress[:117]}..."
    for refusal in use.refused:
        times = f" ({refusal.count} times)" if refusal.count > 1 else ""
        why = "no job may reach private or local addresses" if refusal.always_blocked else f"egress is {allowed}"
        yield f"belljar: refused {_what(refusal)}{times}: {why}"
    more = use.refused_count - sum(refusal.count for refusal in use.refused)
    if more > 0:
        yield f"belljar: refused {more} more connections or names"
    if use.limited_count:
        yield f"belljar: held back {use.limited_count} connections: over the limits of number or rate"


def _what(refusal: Refusal) -> str:
    if refusal.protocol == "dns":
        private = f", which leads to {refusal.address}" if refusal.address else ""
        return f"the name {refusal.name!r}{private}"
    port = "" if refusal.port is None else f":{refusal.port}"
    name = f" ({refusal.name})" if refusal.name else ""
    return f"a connection to {refusal.address}{port}{name} by {refusal.protocol}"
