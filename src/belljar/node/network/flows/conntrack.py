"""Flows without BPF: the entries of a slot's connection tracking, and the refusals that its rules record.

Bytes are those of whole IP packets here. Names of TLS and HTTP are not known, and what begins and ends between two
looks, and leaves no entry, is missed. Source: ctnetlink of the kernel (nf_conntrack_netlink.c).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any

from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket

from belljar.node.network.flows.reading import ACK, FIN, ICMP, RST, SYN, TCP, UDP, FlowCounts, FlowKey, FlowReading
from belljar.node.network.netlink import set_sysctl
from belljar.node.network.traffic import RefusedDestination

#: An answer for the helper of a user who is not root fits in one message.
MAX_FLOWS = 1500
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
#: TCP flags by the kernel's state of a connection (enum tcp_conntrack), each way.
_FLAGS = {
    1: (SYN, 0),  # SYN_SENT
    2: (SYN, SYN | ACK),  # SYN_RECV
    3: (SYN | ACK, SYN | ACK),  # ESTABLISHED
    4: (SYN | ACK | FIN, SYN | ACK),  # FIN_WAIT
    5: (SYN | ACK, SYN | ACK | FIN),  # CLOSE_WAIT
    6: (SYN | ACK | FIN, SYN | ACK | FIN),  # LAST_ACK
    7: (SYN | ACK | FIN, SYN | ACK | FIN),  # TIME_WAIT
    8: (SYN | ACK | RST, SYN | ACK | RST),  # CLOSE
}


def enable_accounting() -> None:
    """Have the calling thread's namespace count the bytes of its connections. Raises OSError."""
    set_sysctl("net/netfilter/nf_conntrack_acct", "1")
    set_sysctl("net/netfilter/nf_conntrack_timestamp", "1")


def read_conntrack(guest: IPv4Address, reason: str, refused: Iterable[RefusedDestination]) -> FlowReading:
    """Return the connections of the calling thread's namespace. Blocks. Raises NetlinkError, OSError."""
    entries = asyncio.run(_dump())
    now_ns, clock_ns = time.monotonic_ns(), time.time_ns() - time.monotonic_ns()
    allowed = {}
    for entry in entries[:MAX_FLOWS]:
        parsed = _parse(entry, str(guest), now_ns, clock_ns)
        if parsed is not None:
            allowed[parsed[0]] = parsed[1]
    attempts = {}
    for each in refused:
        if each.address is not None:
            protocol = _PROTOCOLS.get(each.protocol) or int(each.protocol)
            key = FlowKey(int(each.address), each.port or 0, 0, protocol)
            attempts[key] = FlowCounts(now_ns, now_ns, 0, 0, each.count, 0, 0, 0)
    return FlowReading(
        source="conntrack",
        source_reason=reason,
        allowed=allowed,
        attempts=attempts,
        attempt_flows=len(attempts),
        attempt_packets=sum(counts.packets_out for counts in attempts.values()),
    )


async def _dump() -> list[Any]:
    async with AsyncNFCTSocket() as connections:
        return [entry async for entry in await connections.dump()]


def _parse(entry: Any, guest: str, now_ns: int, clock_ns: int) -> tuple[FlowKey, FlowCounts] | None:
    """Return the flow of an entry; None for one that the guest did not open."""
    origin = entry.get_attr("CTA_TUPLE_ORIG")
    addresses, ports = origin.get_attr("CTA_TUPLE_IP"), origin.get_attr("CTA_TUPLE_PROTO")
    if addresses.get_attr("CTA_IP_V4_SRC") != guest:
        return None
    guest_port = ports.get_attr("CTA_PROTO_SRC_PORT") or ports.get_attr("CTA_PROTO_ICMP_ID") or 0
    key = FlowKey(
        int(IPv4Address(addresses.get_attr("CTA_IP_V4_DST"))),
        ports.get_attr("CTA_PROTO_DST_PORT") or 0,
        guest_port,
        ports.get_attr("CTA_PROTO_NUM"),
    )
    (packets_out, bytes_out), (packets_in, bytes_in) = (
        _counters(entry.get_attr(f"CTA_COUNTERS_{way}")) for way in ("ORIG", "REPLY")
    )
    times = entry.get_attr("CTA_TIMESTAMP")
    started = times.get_attr("CTA_TIMESTAMP_START") if times is not None else None
    first_ns = started - clock_ns if started else now_ns
    info = entry.get_attr("CTA_PROTOINFO")
    tcp = info.get_attr("CTA_PROTOINFO_TCP") if info is not None else None
    state = tcp.get_attr("CTA_PROTOINFO_TCP_STATE") if tcp is not None else None
    flags_out, flags_in = _FLAGS.get(state or 0, (0, 0))
    return key, FlowCounts(first_ns, now_ns, bytes_out, bytes_in, packets_out, packets_in, flags_out, flags_in)


def _counters(counters: Any) -> tuple[int, int]:
    if counters is None:
        return 0, 0
    return counters.get_attr("CTA_COUNTERS_PACKETS") or 0, counters.get_attr("CTA_COUNTERS_BYTES") or 0
