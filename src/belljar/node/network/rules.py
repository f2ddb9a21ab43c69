"""The rule sets, as text for nftables: those inside a slot's namespace, those of the host's own table, the guard.

A slot's rules are whole when it is made and let nothing out; a policy is what `policy_rules` adds, in one transaction.
Source: nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.layout import GATEWAY_MAC, HOST_PREFIX, TAP, UPLINK, Layout
from belljar.node.network.policy import NetworkRule, Policy

#: Tables inside a slot's namespace.
SLOT_TABLE = "belljar"
#: How many different refused destinations are told apart in the kernel; the job shows the first of them.
MAX_REFUSED = 64
#: Addresses that the resolver may have opened at one time.
MAX_OPENED = 4096
DNS_PER_SECOND = 200
_DNS_CONNECTIONS = 16
_PINGS_PER_SECOND = 20
GUARD_TABLE = "belljar_guard"


def slot_rules(layout: Layout, number: int) -> str:
    """The tables of slot `number`. What the guest sends is checked at the device: its MAC, its address, its rate."""
    packets = layout.packets_per_second
    rate = layout.connections_per_second
    return f"""
table netdev {SLOT_TABLE} {{
    counter forged {{ }}
    chain ingress {{
        type filter hook ingress device "{TAP}" priority -500; policy drop;
        limit rate over {packets}/second burst {packets} packets drop
        ether saddr != {GUEST_MAC} counter name forged drop
        ether type arp arp operation request arp saddr ether {GUEST_MAC} arp saddr ip {layout.guest} arp daddr ip \
{layout.gateway} limit rate 20/second burst 20 packets accept
        ether type arp drop
        ether daddr != {GATEWAY_MAC} drop
        ether type ip ip saddr {layout.guest} accept
        counter name forged
    }}
}}
table inet {SLOT_TABLE} {{
    counter refused {{ }}
    counter limited {{ }}
    set never {{ type ipv4_addr; flags interval; elements = {{ {_listed(layout.never)} }}; }}
    set excepted {{ type ipv4_addr; flags interval; }}
    set excepted_ports {{ type ipv4_addr . inet_service; flags interval; }}
    set networks {{ type ipv4_addr; flags interval; }}
    set network_ports {{ type ipv4_addr . inet_service; flags interval; }}
    set names {{ type ipv4_addr; flags timeout; size {MAX_OPENED}; }}
    set name_ports {{ type ipv4_addr . inet_service; flags timeout; size {MAX_OPENED}; }}
    set refused_to {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size {MAX_REFUSED}; counter; }}

    chain untracked {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{TAP}" ip daddr {layout.gateway} udp dport 53 notrack
    }}
    chain untracked_answers {{
        type filter hook output priority raw; policy accept;
        oifname "{TAP}" udp sport 53 notrack
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname != "{TAP}" drop
        ip daddr {layout.gateway} udp dport 53 limit rate {DNS_PER_SECOND}/second burst {DNS_PER_SECOND} packets accept
        ip daddr {layout.gateway} udp dport 53 drop
        ip daddr {layout.gateway} tcp dport 53 jump questions_by_tcp
        ip daddr {layout.gateway} icmp type echo-request limit rate {_PINGS_PER_SECOND}/second accept
        ct state established,related accept
        goto refuse
    }}
    chain questions_by_tcp {{
        ct state established accept
        ct state != new drop
        ct count over {_DNS_CONNECTIONS} drop
        accept
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        iifname "{UPLINK}" oifname "{TAP}" ct state established,related accept
        iifname "{TAP}" oifname "{UPLINK}" jump outgoing
    }}
    chain outgoing {{
        ct state established,related accept
        limit rate over {rate}/second burst {2 * rate} packets counter name limited drop
        ip daddr @never jump private
        meta l4proto != {{ tcp, udp, icmp }} goto refuse
        meta l4proto icmp icmp type != echo-request goto refuse
        jump granted
        goto refuse
    }}
    chain private {{
        ip daddr @excepted return
        meta l4proto {{ tcp, udp }} ip daddr . th dport @excepted_ports return
        goto refuse
    }}
    chain granted {{ }}
    chain listed {{
        ip daddr @networks goto admit
        ip daddr @names goto admit
        meta l4proto {{ tcp, udp }} ip daddr . th dport @network_ports goto admit
        meta l4proto {{ tcp, udp }} ip daddr . th dport @name_ports goto admit
    }}
    chain admit {{
        ct count over {layout.connections} counter name limited drop
        accept
    }}
    chain refuse {{
        counter name refused
        meta l4proto {{ tcp, udp }} add @refused_to {{ ip daddr . meta l4proto . th dport counter }}
        meta l4proto != {{ tcp, udp }} add @refused_to {{ ip daddr . meta l4proto . 0 counter }}
        meta l4proto tcp reject with tcp reset
        limit rate 50/second reject with icmpx admin-prohibited
        drop
    }}
    chain outbound {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{UPLINK}" snat ip to {layout.slot_address(number)}
    }}
}}
"""


def policy_rules(policy: Policy) -> str:
    """What opens a slot for a policy; to be run once."""
    table = f"inet {SLOT_TABLE}"
    target = "goto admit" if policy.open else "jump listed"
    commands = [f"add rule {table} granted {target}"]
    for kind, rules in (("excepted", policy.excepted), ("network", policy.networks)):
        plain = f"{table} {'excepted' if kind == 'excepted' else 'networks'}"
        commands += _added(plain, [rule for rule in rules if rule.port is None])
        commands += _added(f"{table} {kind}_ports", [rule for rule in rules if rule.port is not None])
    return "\n".join(commands)


def _added(where: str, rules: list[NetworkRule]) -> list[str]:
    return [f"add element {where} {{ {_listed(rule.element() for rule in rules)} }}"] if rules else []


def opened(addresses: Iterable[IPv4Address], port: int | None, seconds: int) -> list[str]:
    """Commands that let addresses through for so long; for those that were open the time begins anew."""
    where = f"inet {SLOT_TABLE} {'names' if port is None else 'name_ports'}"
    commands = []
    for address in addresses:
        key = str(address) if port is None else f"{address} . {port}"
        # Adding what is there already would leave it its old time.
        commands.append(f"add element {where} {{ {key} timeout {seconds}s }}")
        commands.append(f"delete element {where} {{ {key} }}")
        commands.append(f"add element {where} {{ {key} timeout {seconds}s }}")
    return commands


def host_table(owner: str, pool: int) -> str:
    """Name of a table on the host: of one belljar process, and of one pool in it."""
    return f"belljar_{owner.replace('-', '_')}_{pool}"


def table_owner(table: str) -> str | None:
    """The owner that a table of the host is named after; None for a table that is not such a one."""
    owner, _, pool = table.removeprefix("belljar_").rpartition("_")
    ours = table.startswith("belljar_") and owner.count("_") == 2 and pool.isdigit()
    return owner.replace("_", "-") if ours else None


def removed(table: str) -> str:
    """Commands that remove a table whether it is there or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def host_rules(table: str, layout: Layout, excepted: Iterable[NetworkRule]) -> str:
    """The host's side, for what comes out of slots whatever a slot's own rules let through; nothing else is touched."""
    excepted = list(excepted)
    plain = [rule.element() for rule in excepted if rule.port is None]
    ports = [rule.element() for rule in excepted if rule.port is not None]
    return f"""
table inet {table} {{
    set slots {{ type ifname; }}
    set never {{ type ipv4_addr; flags interval; elements = {{ {_listed(layout.never)} }}; }}
    set excepted {{ type ipv4_addr; flags interval; {_elements(plain)} }}
    set excepted_ports {{ type ipv4_addr . inet_service; flags interval; {_elements(ports)} }}
    chain arriving {{
        type filter hook prerouting priority raw; policy accept;
        iifname != @slots accept
        meta nfproto ipv6 drop
        fib saddr . iif oif missing drop
    }}
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname @slots drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname @slots jump from_slot
        oifname @slots jump to_slot
    }}
    chain from_slot {{
        oifname "{HOST_PREFIX}*" drop
        ct state established,related accept
        ip daddr @never jump private
        tcp flags syn tcp option maxseg size set rt mtu
    }}
    chain private {{
        ip daddr @excepted return
        meta l4proto {{ tcp, udp }} ip daddr . th dport @excepted_ports return
        drop
    }}
    chain to_slot {{
        ct state established,related accept
        drop
    }}
    chain outbound {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {layout.network_range} oifname != "{HOST_PREFIX}*" masquerade
    }}
}}
"""


def guard_rules(interfaces: Iterable[str]) -> str:
    """What keeps the host from routing between its own interfaces while belljar has turned forwarding on."""
    return f"""
table inet {GUARD_TABLE} {{
    set before {{ type ifname; {_elements([f'"{name}"' for name in interfaces])} }}
    chain forward {{
        type filter hook forward priority filter - 20; policy accept;
        iifname @before oifname @before drop
    }}
}}
"""


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _elements(values: list[str]) -> str:
    return f"elements = {{ {_listed(values)} }};" if values else ""
