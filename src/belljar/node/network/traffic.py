"""What went through a slot and what was refused, read from the kernel's counters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A destination that was refused: an address that was tried, or a name that was asked for."""

    address: IPv4Address | None
    #: None where the protocol has none.
    port: int | None = None
    #: `tcp`, `udp`, `icmp`, another's number, or `dns` for a name.
    protocol: str
    name: str | None = None
    #: Whether it is refused to every machine: a private address, the host's own, a neighbour's.
    never: bool = False
    count: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """One machine's use of its network."""

    rx_bytes: int
    tx_bytes: int
    refused: tuple[Refused, ...] = ()
    #: All that were refused, beyond those listed too.
    refused_count: int = 0
    #: Connections over the limits of number and rate.
    limited_count: int = 0
    #: Packets under another's address, or of a kind that no machine sends.
    forged_count: int = 0


def parse_traffic(tap_bytes: tuple[int, int], counters: dict[str, Any], refused_to: dict[str, Any]) -> Traffic:
    """From bytes to and from the guest, and what nftables prints of the counters and of refused destinations."""
    counted = parse_counters(counters)
    return Traffic(
        rx_bytes=tap_bytes[0],
        tx_bytes=tap_bytes[1],
        refused=tuple(parse_refused(refused_to)),
        refused_count=counted.get("refused", 0),
        limited_count=counted.get("limited", 0),
        forged_count=counted.get("forged", 0),
    )


def parse_counters(printed: dict[str, Any]) -> dict[str, int]:
    """Name → packets, from nftables' `list counters`."""
    found = {}
    for each in printed.get("nftables", ()):
        if "counter" in each:
            found[str(each["counter"]["name"])] = int(each["counter"]["packets"])
    return found


def parse_refused(printed: dict[str, Any]) -> Iterator[Refused]:
    """The elements of the set of refused destinations, those with the most attempts first."""
    elements = [
        element["elem"]
        for each in printed.get("nftables", ())
        for element in each.get("set", {}).get("elem", ())
        if "elem" in element
    ]
    for element in sorted(elements, key=lambda each: -int(each["counter"]["packets"])):
        address, protocol, port = element["val"]["concat"]
        yield Refused(
            address=IPv4Address(address),
            protocol=_protocol(protocol),
            port=int(port) or None,
            count=int(element["counter"]["packets"]),
        )


def _protocol(given: str | int) -> str:
    return _PROTOCOLS.get(given, str(given)) if isinstance(given, int) else given
