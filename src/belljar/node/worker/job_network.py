"""The networks of jobs: from the egress to an open slot for the machine, and from the traffic to the job's record."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from belljar.model.egress import Destination, Egress, parse_destination, parse_egress
from belljar.model.errors import InvalidOption
from belljar.model.flows import FlowAlert, FlowReport
from belljar.model.job import Job, NetworkUse, Refusal
from belljar.node.machines.provision.network_slot import SlotFactory
from belljar.node.machines.provision.request import ProvisionedMachine
from belljar.node.network.attachment import Attachment
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.traffic import RefusedDestination, Traffic
from belljar.node.worker.alarm import Alarm
from belljar.packages.registries import package_destinations, package_environment
from belljar.settings import Settings
from belljar.settings.packages import PackageSettings

if TYPE_CHECKING:
    from belljar.node.network.flows.alerts import AlertRules
    from belljar.node.network.pool import SlotPool
log = structlog.get_logger()

#: Starts a machine with a slot of the factory, or without a network; removes it at the end of the block.
MachineStart = Callable[[SlotFactory | None], AbstractAsyncContextManager[ProvisionedMachine]]


class Networking:
    """The networks of one process, removed at the end of its `async with` block.

    Nothing of the host is changed before the first job needs a network.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._private_rules = _private_rules(settings)
        self._alert_rules: AlertRules | None = None
        self._pool: SlotPool | None = None

    async def __aenter__(self) -> Networking:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            await self._pool.__aexit__(kind, error, trace)

    def for_job(self, job: Job) -> JobNetwork:
        """Return the network of one attempt at a job, which has no machine yet.

        Raises InvalidOption when a setting is malformed.
        """
        return self.for_egress(job.egress, job.resources.network_mbit_per_second)

    def for_egress(self, given: str | tuple[str, ...], mbit_per_second: float | None) -> JobNetwork:
        """Return the network of one machine with this egress. Raises InvalidOption when a setting is malformed."""
        egress = parse_egress(given)
        if egress.kind == "none":
            return JobNetwork(None, None, None, {})
        environment = package_environment(self._settings) if egress.kind == "packages" else {}
        return JobNetwork(
            self._slots(), self._policy(egress), mbit_per_second, environment, alert_rules=self._rules_of_alerts()
        )

    def _rules_of_alerts(self) -> AlertRules:
        if self._alert_rules is None:
            from belljar.node.network.flows.alerts import alert_rules

            self._alert_rules = alert_rules(self._settings)
        return self._alert_rules

    def _slots(self) -> SlotPool:
        if self._pool is None:
            from belljar.node.network.pool import SlotPool  # netlink and DNS take 0.2 s to load

            self._pool = SlotPool(self._settings, self._private_rules)
        return self._pool

    def _policy(self, egress: Egress) -> Policy:
        if egress.kind == "open":
            return Policy(open=True)
        if egress.kind == "packages":
            return policy_of(package_destinations(self._settings), self._private_rules)
        return policy_of(egress.destinations)


class JobNetwork:
    """The network of one attempt: a slot for its machine, opened for the destinations that the job may reach."""

    def __init__(
        self,
        slots: SlotPool | None,
        policy: Policy | None,
        mbit: float | None,
        environment: dict[str, str],
        *,
        alert_rules: AlertRules | None = None,
    ) -> None:
        self._slots, self._policy, self._mbit = slots, policy, mbit
        self._alert_rules = alert_rules
        self._attachment: Attachment | None = None
        self._ids: dict[str, object] = {}
        self._on_flows: Callable[[FlowReport], None] = lambda _: None
        #: Has the alert that ends the job or sandbox, if one does.
        self.alarm = Alarm()
        #: Variables that point package managers to the mirrors.
        self.environment = environment

    @property
    def has_device(self) -> bool:
        """Whether the job's machine has a network device."""
        return self._slots is not None

    @asynccontextmanager
    async def machine(self, start: MachineStart) -> AsyncIterator[ProvisionedMachine]:
        """Start a machine with a slot, and open the slot for the job before anything of the job runs.

        Raises NoNetwork, NetworkError, and the errors of `start`.
        """
        if self._slots is None or self._policy is None:
            async with start(None) as provisioned:
                yield provisioned
            return
        await self._slots.set_up()
        async with start(self._slots.with_network_slot) as provisioned:
            assert provisioned.slot is not None
            started = time.monotonic()
            opened = self._slots.with_policy(
                provisioned.slot, self._policy, self._mbit, alert_rules=self._alert_rules, listener=self
            )
            async with opened as attachment:
                self._attachment = attachment
                provisioned.phases["network"] = round((time.monotonic() - started) * 1000, 3)
                yield provisioned

    async def traffic(self) -> Traffic | None:
        """Return the machine's traffic so far; None without a network, or when it cannot be read."""
        return await self._attachment.traffic() if self._attachment is not None else None

    async def finish_flows(self) -> FlowReport | None:
        """Return all flows of the machine, which sends no more; None when they are not counted."""
        watch = self._attachment.flows if self._attachment is not None else None
        return await watch.finish() if watch is not None else None

    def observe(self, ids: dict[str, object], on_flows: Callable[[FlowReport], None]) -> None:
        """Log alerts with these fields, and pass the flows so far on at intervals."""
        self._ids, self._on_flows = ids, on_flows

    def on_report(self, report: FlowReport) -> None:
        """Pass the flows so far on."""
        self._on_flows(report)

    def on_alert(self, alert: FlowAlert) -> None:
        """Log an alert, and raise the alarm if it is to end the machine."""
        log.warning("flow_alert_raised", **self._ids, rule=alert.rule, action=alert.action, message=alert.message)
        if alert.action == "stop":
            self.alarm.ring(alert)


def policy_of(destinations: tuple[Destination, ...], excepted: tuple[NetworkRule, ...] = ()) -> Policy:
    """Return the policy that allows these destinations alone. `excepted` are private networks that they may be in."""
    return Policy(
        names=tuple(NameRule(each.name, each.below, each.port) for each in destinations if each.name is not None),
        networks=tuple(NetworkRule(each.network, each.port) for each in destinations if each.network is not None),
        exceptions=excepted,
    )


def _private_rules(settings: PackageSettings) -> tuple[NetworkRule, ...]:
    """Return the private networks that package registries may be in. Raises InvalidOption for a malformed setting."""
    rules = []
    for entry in settings.package_private_networks:
        try:
            destination = parse_destination(entry, private=True)
        except ValueError as error:
            raise InvalidOption(f"invalid setting package_private_networks: {error}") from None
        if destination.network is None:
            raise InvalidOption(
                f"invalid setting package_private_networks: {entry!r} is a name; give addresses or networks"
            )
        rules.append(NetworkRule(destination.network, destination.port))
    return tuple(rules)


def network_use(traffic: Traffic | None, flows: FlowReport | None = None) -> NetworkUse:
    """Return what a job's record shows of its machine's traffic."""
    alerts = flows.alerts if flows is not None else ()
    if traffic is None:
        return NetworkUse(alerts=alerts)
    return NetworkUse(
        alerts=alerts,
        refused_count=traffic.refused_count,
        refused=tuple(_refusal(each) for each in traffic.refused),
        limited_count=traffic.limited_count,
        forged_count=traffic.forged_count,
    )


def _refusal(refused: RefusedDestination) -> Refusal:
    return Refusal(
        name=refused.name,
        address=str(refused.address) if refused.address is not None else None,
        port=refused.port,
        protocol=refused.protocol,
        always_blocked=refused.always_blocked,
        count=refused.count,
    )


def format_refusals(use: NetworkUse, job: Job) -> Iterator[str]:
    """Yield sentences for the job's log: which connections and names were refused, and why."""
    egress = str(parse_egress(job.egress))
    allowed = egress if len(egress) <= 120 else f"{egress[:117]}..."
    for refusal in use.refused:
        times = f" ({refusal.count} times)" if refusal.count > 1 else ""
        why = "no job may reach private or local addresses" if refusal.always_blocked else f"egress is {allowed}"
        yield f"refused {_describe(refusal)}{times}: {why}"
    more = use.refused_count - sum(refusal.count for refusal in use.refused)
    if more > 0:
        yield f"refused {more} more connections or names"
    for alert in use.alerts:
        yield f"flow alert {alert.rule}: {alert.message}"
    if use.limited_count:
        yield f"dropped {use.limited_count} connections (connection or rate limit)"


def _describe(refusal: Refusal) -> str:
    if refusal.protocol == "dns":
        private = f", which leads to {refusal.address}" if refusal.address else ""
        return f"the name {refusal.name!r}{private}"
    port = "" if refusal.port is None else f":{refusal.port}"
    name = f" ({refusal.name})" if refusal.name else ""
    return f"a connection to {refusal.address}{port}{name} by {refusal.protocol}"
