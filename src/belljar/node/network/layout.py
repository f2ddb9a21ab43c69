"""Names, addresses and limits of slots, from the settings and this host's own networks.

Inside, every slot is the same: the same addresses and the same two MACs, so that a machine cloned from a snapshot finds
its gateway at the same address. Outside, slot number N has two addresses of the host's range.
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
#: Prefix of the slots' interfaces on the host; no other interface may have it.
HOST_PREFIX = "belljar"
NAMESPACES = Path("/run/netns")
NAMESPACE_PREFIX = "belljar-"
MAX_MTU = 1500
#: Upstream name servers after the host's own.
FALLBACK_NAMESERVERS = (IPv4Address("1.1.1.1"), IPv4Address("8.8.8.8"))


@dataclass(frozen=True, kw_only=True, slots=True)
class HostNetworks:
    """The host's addresses and networks, from its interfaces and routing tables."""

    addresses: tuple[IPv4Address, ...]
    #: Networks that the host is directly connected to.
    connected: tuple[IPv4Network, ...]
    #: Every network that the host has a route to, except the default route.
    routed: tuple[IPv4Network, ...]
    #: Bytes of the largest packet on the default route.
    mtu: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Addresses and limits that all slots share."""

    network_range: IPv4Network
    gateway: IPv4Address
    guest: IPv4Address
    guest_network: IPv4Network
    mtu: int
    #: Networks that no slot may reach; collapsed, so that no two overlap.
    blocked: tuple[IPv4Network, ...]
    mbit: int
    packets_per_second: int
    connections: int
    connections_per_second: int
    count_flows: bool = True

    @property
    def max_slots(self) -> int:
        """Return how many slots `network_range` has addresses for."""
        return self.network_range.num_addresses // 2

    def host_address(self, number: int) -> IPv4Address:
        """Return the address of the host's end of slot `number`'s link, a /31."""
        return self.network_range[2 * number]

    def slot_address(self, number: int) -> IPv4Address:
        """Return the address of the slot's end, the source of every packet of its machine on the host."""
        return self.network_range[2 * number + 1]

    def network_slot(self, namespace: Path) -> NetworkSlot:
        """Return the slot with that namespace as its machine needs it."""
        return NetworkSlot(
            namespace=namespace,
            tap=TAP,
            guest_mac=GUEST_MAC,
            guest_address=f"{self.guest}/{self.guest_network.prefixlen}",
            gateway=str(self.gateway),
            nameservers=(str(self.gateway),),
            mtu=self.mtu,
        )


def build_layout(settings: NetworkSettings, host: HostNetworks) -> Layout:
    """Return the layout for this host. Raises NoNetwork when the settings' ranges are too small or in use here."""
    network_range, guest_network = settings.network_range, settings.guest_network
    for setting, network in (("network_range", network_range), ("guest_network", guest_network)):
        if network.prefixlen > 30:
            raise NoNetwork(f"the setting {setting} is {network}; it needs at least four addresses")
    if network_range.overlaps(guest_network):
        raise NoNetwork(f"the settings network_range ({network_range}) and guest_network ({guest_network}) overlap")
    for routed in host.routed:
        if routed.overlaps(network_range):
            raise NoNetwork(
                f"the setting network_range is {network_range}, and this host has a route to {routed}; "
                "set network_range to a network that is unused here"
            )
    own = [IPv4Network(address) for address in host.addresses]
    return Layout(
        network_range=network_range,
        gateway=guest_network[1],
        guest=guest_network[2],
        guest_network=guest_network,
        mtu=min(MAX_MTU, host.mtu),
        blocked=tuple(collapse_addresses([*BLOCKED_NETWORKS, *host.connected, *own, *settings.refused_networks])),
        mbit=settings.network_mbit,
        packets_per_second=settings.network_packets_per_second,
        connections=settings.network_connections,
        connections_per_second=settings.network_connections_per_second,
        count_flows=settings.network_flows == "on",
    )


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """Return the layout as JSON values; `layout_from_json` reads them."""
    fields = {each.name: getattr(layout, each.name) for each in dataclasses.fields(layout)}
    return {name: value if isinstance(value, int) else _to_json(value) for name, value in fields.items()}


def _to_json(value: object) -> str | list[str]:
    return [str(each) for each in value] if isinstance(value, tuple) else str(value)


def layout_from_json(fields: dict[str, Any]) -> Layout:
    """Return the layout from JSON values. Raises KeyError, ValueError unless `layout_to_json` wrote them."""
    networks = {name: IPv4Network(fields[name]) for name in ("network_range", "guest_network")}
    addresses = {name: IPv4Address(fields[name]) for name in ("gateway", "guest")}
    blocked = tuple(IPv4Network(each) for each in fields["blocked"])
    return Layout(**{**fields, **networks, **addresses, "blocked": blocked})


def namespace_name(owner: str, number: int) -> str:
    """Return belljar-OWNER.NUMBER, the name of a slot's namespace below NAMESPACES."""
    return f"{NAMESPACE_PREFIX}{owner}.{number}"


def parse_namespace_name(name: str) -> tuple[str, int] | None:
    """Return owner and number from the name of a slot's namespace; None for any other name."""
    owner, dot, number = name.removeprefix(NAMESPACE_PREFIX).rpartition(".")
    if not name.startswith(NAMESPACE_PREFIX) or not dot or not number.isascii() or not number.isdigit():
        return None
    return owner, int(number)


def host_interface(number: int) -> str:
    """Return the name of the host's end of slot `number`'s link."""
    return f"{HOST_PREFIX}{number}"
