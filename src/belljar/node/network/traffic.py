"""Traffic and refusals of a slot, parsed from the kernel's counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedDestination:
    """A refused destination: an address of a connection attempt, or a name of a DNS query."""

    address: IPv4Address | None
    #: None for protocols without ports.
    port: int | None = None
    #: `tcp`, `udp`, `icmp`, the number of any other protocol, or `dns` for a name.
    protocol: str
    name: str | None = None
    #: Whether every machine is refused it: a private address, the host's own, a neighbour's.
    always_blocked: bool = False
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """One machine's use of its network."""

    rx_bytes: int
    tx_bytes: int
    refused: tuple[RefusedDestination, ...] = ()
    #: All refusals, including those not in `refused`.
    refused_count: int = 0
    #: Connections over the limits of number and rate.
    limited_count: int = 0
    #: Packets with a forged source address or of a type that no machine sends.
    forged_count: int = 0


def parse_traffic(
    tap_bytes: tuple[int, int], counters: dict[str, Any], refused_destinations: dict[str, Any]
) -> Traffic:
    """Return the traffic from the bytes to and from the guest, and nftables' output of counters and refusals."""
    counted = parse_counters(counters)
    return Traffic(
        rx_bytes=tap_bytes[0],
        tx_bytes=tap_bytes[1],
        refused=tuple(parse_refused(refused_destinations)),
        refused_count=counted.get("refused", 0),
        limited_count=counted.get("limited", 0),
        forged_count=counted.get("forged", 0),
    )


def parse_counters(printed: dict[str, Any]) -> dict[str, int]:
    """Return packets by counter name from nftables' `list counters`."""
    packets = {}
    for each in printed.get("nftables", ()):
        if "counter" in each:
            packets[str(each["counter"]["name"])] = int(each["counter"]["packets"])
    return packets


def parse_refused(printed: dict[str, Any]) -> Iterator[RefusedDestination]:
    """Yield the elements of the set of refused destinations, those with the most attempts first."""
    elements = [
        element["elem"]
        for each in printed.get("nftables", ())
        for element in each.get("set", {}).get("elem", ())
        if "elem" in element
    ]
    for element in sorted(elements, key=lambda each: -int(each["counter"]["packets"])):
        address, protocol, port = element["val"]["concat"]
        yield RefusedDestination(
            address=IPv4Address(address),
            protocol=_protocol(protocol),
            port=int(port) or None,
            count=int(element["counter"]["packets"]),
        )


def _protocol(value: str | int) -> str:
    return _PROTOCOLS.get(value, str(value)) if isinstance(value, int) else value
