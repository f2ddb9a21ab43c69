"""Names, addresses and limits of slots, from the settings and from what this host is connected to.

From inside, every slot looks the same: the same addresses and the same two MACs, so that a machine cloned from a
snapshot finds its gateway where it was. Outside, slot number N has two addresses of the host's range.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from pathlib import Path
from typing import Any

from belljar.model.egress import BLOCKED_NETWORKS
from belljar.model.errors import NoNetwork
from belljar.node.machines.protocol import GUEST_MAC, NetworkSlot
from belljar.settings.network import NetworkSettings

TAP = "tap0"
UPLINK = "up0"
#: The same in every slot, so that a clone's ARP cache is right. Unicast and locally administered, as GUEST_MAC is.
GATEWAY_MAC = "02:62:6a:00:00:01"
#: Interfaces of slots on the host begin with this; nobody else's may.
HOST_PREFIX = "belljar"
NAMESPACES = Path("/run/netns")
NAMESPACE_PREFIX = "belljar-"
MAX_MTU = 1500
#: A guest's resolv.conf that names the gateway needs no more.
FALLBACK_NAMESERVERS = (IPv4Address("1.1.1.1"), IPv4Address("8.8.8.8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class HostFacts:
    """What the host is connected to, as its routing tables say."""

    addresses: tuple[IPv4Address, ...]
    #: Networks that it is in itself: its neighbours'.
    connected: tuple[IPv4Network, ...]
    #: Every network that it has a route for, but the default.
    routed: tuple[IPv4Network, ...]
    #: Largest packet towards the internet.
    mtu: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Everything about slots that does not depend on which one it is."""

    network_range: IPv4Network
    gateway: IPv4Address
    guest: IPv4Address
    guest_network: IPv4Network
    mtu: int
    #: Never reached from a slot; collapsed, so that no two overlap.
    never: tuple[IPv4Network, ...]
    mbit: int
    packets_per_second: int
    connections: int
    connections_per_second: int

    @property
    def most_slots(self) -> int:
        return self.network_range.num_addresses // 2

    def host_address(self, number: int) -> IPv4Address:
        """The host's end of slot `number`'s link, a /31."""
        return self.network_range[2 * number]

    def slot_address(self, number: int) -> IPv4Address:
        """The slot's end, under which everything that its machine sends reaches the host."""
        return self.network_range[2 * number + 1]

    def described(self, namespace: Path) -> NetworkSlot:
        """What a machine is told of the slot whose namespace that is."""
        return NetworkSlot(
            namespace=namespace,
            tap=TAP,
            guest_mac=GUEST_MAC,
            guest_address=f"{self.guest}/{self.guest_network.prefixlen}",
            gateway=str(self.gateway),
            nameservers=(str(self.gateway),),
            mtu=self.mtu,
        )


def lay_out(settings: NetworkSettings, host: HostFacts) -> Layout:
    """The layout for this host. Raises NoNetwork when the settings' ranges are in use here, or are none."""
    network_range, guest_network = settings.network_range, settings.guest_network
    for setting, network in (("network_range", network_range), ("guest_network", guest_network)):
        if network.prefixlen > 30:
            raise NoNetwork(f"the setting {setting} is {network}; it needs four addresses at least")
    if network_range.overlaps(guest_network):
        raise NoNetwork(f"the settings network_range ({network_range}) and guest_network ({guest_network}) overlap")
    for routed in host.routed:
        if routed.overlaps(network_range):
            raise NoNetwork(
                f"the setting network_range is {network_range}, and this host has a route to {routed}; "
                "set network_range to a network that nothing here uses"
            )
    own = [IPv4Network(address) for address in host.addresses]
    return Layout(
        network_range=network_range,
        gateway=guest_network[1],
        guest=guest_network[2],
        guest_network=guest_network,
        mtu=min(MAX_MTU, host.mtu),
        never=tuple(collapse_addresses([*BLOCKED_NETWORKS, *host.connected, *own, *settings.refused_networks])),
        mbit=settings.network_mbit,
        packets_per_second=settings.network_packets_per_second,
        connections=settings.network_connections,
        connections_per_second=settings.network_connections_per_second,
    )


def layout_words(layout: Layout) -> dict[str, Any]:
    """As JSON values, for another process of belljar's own; `layout_of` reads them."""
    words = {each.name: getattr(layout, each.name) for each in dataclasses.fields(layout)}
    return {name: value if isinstance(value, int) else _word(value) for name, value in words.items()}


def _word(value: object) -> str | list[str]:
    return [str(each) for each in value] if isinstance(value, tuple) else str(value)


def layout_of(words: dict[str, Any]) -> Layout:
    """Raises KeyError or ValueError for what `layout_words` did not write."""
    networks = {name: IPv4Network(words[name]) for name in ("network_range", "guest_network")}
    addresses = {name: IPv4Address(words[name]) for name in ("gateway", "guest")}
    never = tuple(IPv4Network(each) for each in words["never"])
    return Layout(**{**words, **networks, **addresses, "never": never})


def namespace_name(owner: str, number: int) -> str:
    """belljar-OWNER.NUMBER, below NAMESPACES."""
    return f"{NAMESPACE_PREFIX}{owner}.{number}"


def parse_namespace_name(name: str) -> tuple[str, int] | None:
    """Owner and number of one of our namespaces; None for any other's."""
    owner, dot, number = name.removeprefix(NAMESPACE_PREFIX).rpartition(".")
    if not name.startswith(NAMESPACE_PREFIX) or not dot or not number.isascii() or not number.isdigit():
        return None
    return owner, int(number)


def host_interface(number: int) -> str:
    """Name of the host's end of slot `number`'s link."""
    return f"{HOST_PREFIX}{number}"
