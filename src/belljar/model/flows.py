"""Flows as values: what a machine talked to, as a job or a sandbox shows it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeVar

from belljar.model.value import Value

#: Flows and alerts of one report: more than a node lists of one machine.
MAX_FLOWS = 2000
MAX_ALERTS = 100

AlertRule = Literal["destination", "bytes_out", "port_scan", "beacon"]
NameSource = Literal["dns", "tls", "http"]


class Flow(Value):
    """One conversation of a machine with one peer: a connection, or packets between the same two ports."""

    protocol: str
    """`tcp`, `udp`, `icmp`, or a protocol's number."""
    address: str
    port: int | None = None
    guest_port: int | None = None
    """The machine's own port; the identifier of a ping."""
    verdict: Literal["allowed", "refused"]
    rule: str | None = None
    """What allowed it: `open`, the entry of the egress list, or `resolver`. Why it was refused: `private` (no policy
    allows it), `egress` (this one does not), `protocol`, or `limit` (too many connections or packets)."""
    dns_name: str | None = None
    """The name whose answer from the machine's resolver led to this address."""
    tls_name: str | None = None
    """The server name in the machine's TLS handshake: its claim."""
    http_host: str | None = None
    """The Host of the machine's HTTP request: its claim."""
    tcp_state: str | None = None
    """`syn_sent`, `established`, `closing`, `closed` or `reset`."""
    bytes_out: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    packets_in: int = 0
    first_seen: datetime
    last_seen: datetime

    @property
    def name(self) -> str | None:
        """The best name: the resolver's answer, else what the machine claimed."""
        return self.dns_name or self.tls_name or self.http_host

    @property
    def name_source(self) -> NameSource | None:
        """Where `name` is from."""
        if self.dns_name:
            return "dns"
        if self.tls_name:
            return "tls"
        return "http" if self.http_host else None


class FlowTotals(Value):
    """Sums over flows. Bytes are of payload, or of whole IP packets where the source is `conntrack`."""

    flows: int = 0
    packets_out: int = 0
    packets_in: int = 0
    bytes_out: int = 0
    bytes_in: int = 0


class LostFlows(Value):
    """What was seen and could not be told apart."""

    names: int = 0
    """Connections whose name is not known, since too many began at once."""
    packets: int = 0
    """Packets of connections over the number that is counted at one time."""
    bytes: int = 0
    """The payload of those packets."""
    malformed: int = 0
    """Packets that are no valid IPv4."""
    ipv6: int = 0
    """Packets of IPv6, none of which passes."""


class FlowAlert(Value):
    """Traffic that a rule of the operator reports."""

    rule: AlertRule
    message: str
    at: datetime
    address: str | None = None
    port: int | None = None
    action: Literal["notify", "stop"] = "notify"
    """`stop`: the job or sandbox was ended because of it."""


class FlowReport(Value):
    """The flows of one machine so far."""

    source: Literal["ebpf", "conntrack", "none"] = "none"
    """How they were counted; `none`: the machine has no network, or has not started."""
    source_reason: str | None = None
    """Why it is not `ebpf`."""
    updated_at: datetime | None = None
    is_final: bool = False
    """Whether the machine has ended."""
    totals: FlowTotals = FlowTotals()
    left_out: FlowTotals = FlowTotals()
    """What is in `totals`, and in none of `flows`, whose number is limited."""
    lost: LostFlows = LostFlows()
    flows: tuple[Flow, ...] = ()
    """Those with the most bytes first."""
    alerts: tuple[FlowAlert, ...] = ()

    def public(self) -> dict[str, object]:
        """Return what callers see: the fields, and the best name of each flow."""
        fields = self.model_dump(mode="json")
        for flow, shown in zip(self.flows, fields["flows"], strict=True):
            shown["name"], shown["name_source"] = flow.name, flow.name_source
        return fields


Sums = TypeVar("Sums", FlowTotals, LostFlows)


def joined(reports: Sequence[FlowReport]) -> FlowReport:
    """Return one report of a sandbox's machines, the earlier ones first; what is over its bound is left out."""
    if len(reports) < 2:
        return reports[0] if reports else FlowReport()
    flows = [flow for report in reports for flow in report.flows]
    flows.sort(key=lambda flow: (-flow.bytes_out - flow.bytes_in, flow.first_seen))
    left_out = [report.left_out for report in reports]
    for flow in flows[MAX_FLOWS:]:
        sums = {name: getattr(flow, name) for name in FlowTotals.model_fields if name != "flows"}
        left_out.append(FlowTotals(flows=1, **sums))
    alerts = [alert for report in reports for alert in report.alerts]
    return reports[-1].model_copy(
        update={
            "totals": _sum([report.totals for report in reports]),
            "left_out": _sum(left_out),
            "lost": _sum([report.lost for report in reports]),
            "flows": tuple(flows[:MAX_FLOWS]),
            "alerts": tuple(alerts[:MAX_ALERTS]),
        }
    )


def _sum(parts: Sequence[Sums]) -> Sums:
    kind = type(parts[0])
    return kind(**{name: sum(getattr(part, name) for part in parts) for name in kind.model_fields})
