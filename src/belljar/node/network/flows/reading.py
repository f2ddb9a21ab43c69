"""What one look at a slot's counters gives: values that pass through JSON, for the helper of a user who is not root."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from typing import Any, Literal, NamedTuple

Source = Literal["ebpf", "conntrack"]

#: Bits of FlowCounts.flags_out and flags_in (RFC 793).
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
TCP, UDP, ICMP = 6, 17, 1


class FlowKey(NamedTuple):
    """What tells one flow of a machine from another."""

    #: The peer's address as a number, as in IPv4Address.
    address: int
    #: 0 for protocols without ports, and for later fragments of a packet.
    port: int
    guest_port: int
    protocol: int

    @property
    def peer(self) -> IPv4Address:
        """Return the peer's address."""
        return IPv4Address(self.address)

    @property
    def destination(self) -> tuple[int, int, int]:
        """Return what all flows to one service have in common."""
        return self.address, self.port, self.protocol


class FlowCounts(NamedTuple):
    """The counters of one flow. Times are in nanoseconds of the monotonic clock."""

    first_ns: int
    last_ns: int
    bytes_out: int
    bytes_in: int
    packets_out: int
    packets_in: int
    #: All TCP flags that were seen each way; 0 where they are not known.
    flags_out: int
    flags_in: int

    def plus(self, later: FlowCounts) -> FlowCounts:
        """Return the sum of the counters of two parts of one flow."""
        return FlowCounts(
            self.first_ns,
            max(self.last_ns, later.last_ns),
            self.bytes_out + later.bytes_out,
            self.bytes_in + later.bytes_in,
            self.packets_out + later.packets_out,
            self.packets_in + later.packets_in,
            self.flags_out | later.flags_out,
            self.flags_in | later.flags_in,
        )

    def tcp_state(self) -> str | None:
        """Return the state of a TCP connection from the flags that were seen; None where none are known."""
        both = self.flags_out | self.flags_in
        if not both:
            return None
        if both & RST:
            return "reset"
        if self.flags_out & FIN and self.flags_in & FIN:
            return "closed"
        if both & FIN:
            return "closing"
        return "established" if self.flags_in else "syn_sent"


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCounts:
    """What was seen and is in no flow."""

    malformed: int = 0
    ipv6: int = 0
    #: First payloads that found the ring full: connections whose name is not known.
    names: int = 0
    #: Packets and payload bytes of flows that found their map full.
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowReading:
    """One look at the counters of a slot. A flow that is missing keeps the counters of the last look."""

    source: Source
    #: Why it is not `ebpf`.
    source_reason: str | None = None
    #: Flows that were let through.
    allowed: dict[FlowKey, FlowCounts]
    #: What was not, or was for the gateway.
    attempts: dict[FlowKey, FlowCounts]
    #: Flows of `allowed` whose counters begin at zero if they are seen again.
    ended: frozenset[FlowKey] = frozenset()
    #: The first payloads of connections.
    payloads: tuple[tuple[FlowKey, bytes], ...] = ()
    #: All attempts with their packets and payload bytes, also those that are not in `attempts` any more.
    attempt_flows: int = 0
    attempt_packets: int = 0
    attempt_bytes: int = 0
    lost: LossCounts = LossCounts()


def reading_to_json(reading: FlowReading) -> dict[str, Any]:
    """Return the reading as JSON values, without payloads; `reading_from_json` reads them."""
    return {
        "source": reading.source,
        "source_reason": reading.source_reason,
        "allowed": [[*key, *counts] for key, counts in reading.allowed.items()],
        "attempts": [[*key, *counts] for key, counts in reading.attempts.items()],
        "ended": [list(key) for key in reading.ended],
        "attempt_flows": reading.attempt_flows,
        "attempt_packets": reading.attempt_packets,
        "attempt_bytes": reading.attempt_bytes,
        "lost": asdict(reading.lost),
    }


def reading_from_json(fields: dict[str, Any]) -> FlowReading:
    """Return the reading from JSON values. Raises KeyError, TypeError unless `reading_to_json` wrote them."""
    flows = {
        name: {FlowKey(*each[:4]): FlowCounts(*each[4:]) for each in fields[name]} for name in ("allowed", "attempts")
    }
    ended = frozenset(FlowKey(*each) for each in fields["ended"])
    return FlowReading(**{**fields, **flows, "ended": ended, "lost": LossCounts(**fields["lost"])})
