"""Why a flow was let through or refused: the policy's entry, or the rule of every machine. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from belljar.node.network.flows.reading import ICMP, TCP, UDP, FlowKey
from belljar.node.network.policy import NameRule, NetworkRule, Policy

_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a flow was let through, and by which rule."""

    allowed: bool
    rule: str | None
    #: The name whose answer led to the address.
    dns_name: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The verdicts of one machine's policy."""

    policy: Policy
    gateway: IPv4Address
    blocked: tuple[IPv4Network, ...]
    #: Return the name whose answer last had an address.
    name_of: Callable[[IPv4Address], str | None]

    def of_allowed(self, key: FlowKey) -> Verdict:
        """Return the verdict on a flow that was let through."""
        if key.peer == self.gateway:  # connection tracking has connections to the gateway, too
            return self.of_attempt(key)
        name = self.name_of(key.peer)
        return Verdict(True, self._entry(key, name), name)

    def of_attempt(self, key: FlowKey) -> Verdict:
        """Return the verdict on what was not let through, or was for the gateway."""
        if key.peer == self.gateway:
            if key.port == _DNS_PORT and key.protocol in (TCP, UDP):
                return Verdict(True, "resolver")
            return Verdict(True, "gateway") if key.protocol == ICMP else Verdict(False, "private")
        name = self.name_of(key.peer)
        return Verdict(False, self._refusal(key, name), name)

    def _refusal(self, key: FlowKey, name: str | None) -> str:
        excepted = any(_covers(rule, key) for rule in self.policy.exceptions)
        if any(key.peer in network for network in self.blocked) and not excepted:
            return "private"
        if key.protocol not in (TCP, UDP, ICMP):
            return "protocol"
        return "egress" if self._entry(key, name) is None else "limit"

    def _entry(self, key: FlowKey, name: str | None) -> str | None:
        """Return the entry of the policy that covers a flow; None without one."""
        if self.policy.open:
            return "open"
        for rule in self.policy.networks:
            if _covers(rule, key):
                return _network_text(rule)
        for named in self.policy.rules_for(name) if name is not None else ():
            if named.port is None or named.port == key.port:
                return _name_text(named)
        return None


def _covers(rule: NetworkRule, key: FlowKey) -> bool:
    return key.peer in rule.network and rule.port in (None, key.port)


def _network_text(rule: NetworkRule) -> str:
    network = rule.network.network_address if rule.network.prefixlen == 32 else rule.network
    return str(network) if rule.port is None else f"{network}:{rule.port}"


def _name_text(rule: NameRule) -> str:
    name = f"*.{rule.name}" if rule.subdomains else rule.name
    return name if rule.port is None else f"{name}:{rule.port}"
