"""The nftables rule sets: inside a slot's namespace, in the host's table of one pool, and in the guard table.

A new slot's rules let nothing out; `policy_rules` adds a policy in one transaction. Source: nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.layout import GATEWAY_MAC, HOST_PREFIX, TAP, UPLINK, Layout
from belljar.node.network.policy import NetworkRule, Policy

#: Tables inside a slot's namespace.
SLOT_TABLE = "belljar"
#: Different refused destinations that the kernel records; a job lists the first of them.
MAX_REFUSED = 64
#: Resolved addresses that one slot may allow at one time.
MAX_RESOLVED = 4096
DNS_PER_SECOND = 200
_DNS_CONNECTIONS = 16
_PINGS_PER_SECOND = 20
GUARD_TABLE = "belljar_guard"


def slot_rules(layout: Layout, number: int) -> str:
    """Return the tables of slot `number`. Source MAC, source address and rate are checked at the guest's device."""
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
    set blocked {{ type ipv4_addr; flags interval; elements = {{ {_join(layout.blocked)} }}; }}
    set exceptions {{ type ipv4_addr; flags interval; }}
    set exception_ports {{ type ipv4_addr . inet_service; flags interval; }}
    set networks {{ type ipv4_addr; flags interval; }}
    set network_ports {{ type ipv4_addr . inet_service; flags interval; }}
    set resolved {{ type ipv4_addr; flags timeout; size {MAX_RESOLVED}; }}
    set resolved_ports {{ type ipv4_addr . inet_service; flags timeout; size {MAX_RESOLVED}; }}
    set refused_destinations {{ type ipv4_addr . inet_proto . inet_service; flags dynamic; size {MAX_REFUSED}; \
counter; }}

    chain dns_notrack {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{TAP}" ip daddr {layout.gateway} udp dport 53 notrack
    }}
    chain dns_replies_notrack {{
        type filter hook output priority raw; policy accept;
        oifname "{TAP}" udp sport 53 notrack
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        iifname != "{TAP}" drop
        ip daddr {layout.gateway} udp dport 53 limit rate {DNS_PER_SECOND}/second burst {DNS_PER_SECOND} packets accept
        ip daddr {layout.gateway} udp dport 53 drop
        ip daddr {layout.gateway} tcp dport 53 jump dns_over_tcp
        ip daddr {layout.gateway} icmp type echo-request limit rate {_PINGS_PER_SECOND}/second accept
        ct state established,related accept
        goto refuse
    }}
    chain dns_over_tcp {{
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
        ip daddr @blocked jump private
        meta l4proto != {{ tcp, udp, icmp }} goto refuse
        meta l4proto icmp icmp type != echo-request goto refuse
        jump job_policy
        goto refuse
    }}
    chain private {{
        ip daddr @exceptions return
        meta l4proto {{ tcp, udp }} ip daddr . th dport @exception_ports return
        goto refuse
    }}
    chain job_policy {{ }}
    chain allowlist {{
        ip daddr @networks goto admit
        ip daddr @resolved goto admit
        meta l4proto {{ tcp, udp }} ip daddr . th dport @network_ports goto admit
        meta l4proto {{ tcp, udp }} ip daddr . th dport @resolved_ports goto admit
    }}
    chain admit {{
        ct count over {layout.connections} counter name limited drop
        accept
    }}
    chain refuse {{
        counter name refused
        meta l4proto {{ tcp, udp }} add @refused_destinations {{ ip daddr . meta l4proto . th dport counter }}
        meta l4proto != {{ tcp, udp }} add @refused_destinations {{ ip daddr . meta l4proto . 0 counter }}
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
    """Return the commands that apply a policy to a slot. Run them once."""
    table = f"inet {SLOT_TABLE}"
    target = "goto admit" if policy.open else "jump allowlist"
    commands = [f"add rule {table} job_policy {target}"]
    for name, rules in (("exception", policy.exceptions), ("network", policy.networks)):
        commands += _add_elements(f"{table} {name}s", [rule for rule in rules if rule.port is None])
        commands += _add_elements(f"{table} {name}_ports", [rule for rule in rules if rule.port is not None])
    return "\n".join(commands)


def _add_elements(where: str, rules: list[NetworkRule]) -> list[str]:
    return [f"add element {where} {{ {_join(rule.element() for rule in rules)} }}"] if rules else []


def allow_addresses(addresses: Iterable[IPv4Address], port: int | None, seconds: int) -> list[str]:
    """Return commands that allow addresses for `seconds`, starting anew for those that are allowed already."""
    where = f"inet {SLOT_TABLE} {'resolved' if port is None else 'resolved_ports'}"
    commands = []
    for address in addresses:
        key = str(address) if port is None else f"{address} . {port}"
        # Adding an element that exists keeps its old timeout.
        commands.append(f"add element {where} {{ {key} timeout {seconds}s }}")
        commands.append(f"delete element {where} {{ {key} }}")
        commands.append(f"add element {where} {{ {key} timeout {seconds}s }}")
    return commands


def host_table_name(owner: str, pool: int) -> str:
    """Return the name of the host's table for one pool of one belljar process."""
    return f"belljar_{owner.replace('-', '_')}_{pool}"


def table_owner(table: str) -> str | None:
    """Return the owner in the name of a host's table; None for any other table."""
    owner, _, pool = table.removeprefix("belljar_").rpartition("_")
    ours = table.startswith("belljar_") and owner.count("_") == 2 and pool.isdigit()
    return owner.replace("_", "-") if ours else None


def delete_table(table: str) -> str:
    """Return commands that delete a table, whether it exists or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"


def host_rules(table: str, layout: Layout, exceptions: Iterable[NetworkRule]) -> str:
    """Return the host's table, which filters all packets from slots again and no others."""
    exceptions = list(exceptions)
    plain = [rule.element() for rule in exceptions if rule.port is None]
    ports = [rule.element() for rule in exceptions if rule.port is not None]
    return f"""
table inet {table} {{
    set slots {{ type ifname; }}
    set blocked {{ type ipv4_addr; flags interval; elements = {{ {_join(layout.blocked)} }}; }}
    set exceptions {{ type ipv4_addr; flags interval; {_elements_clause(plain)} }}
    set exception_ports {{ type ipv4_addr . inet_service; flags interval; {_elements_clause(ports)} }}
    chain ingress {{
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
        ip daddr @blocked jump private
        tcp flags syn tcp option maxseg size set rt mtu
    }}
    chain private {{
        ip daddr @exceptions return
        meta l4proto {{ tcp, udp }} ip daddr . th dport @exception_ports return
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
    """Return the table that stops the host from routing between its own interfaces while belljar enables forwarding."""
    return f"""
table inet {GUARD_TABLE} {{
    set before {{ type ifname; {_elements_clause([f'"{name}"' for name in interfaces])} }}
    chain forward {{
        type filter hook forward priority filter - 20; policy accept;
        iifname @before oifname @before drop
    }}
}}
"""


def _join(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _elements_clause(values: list[str]) -> str:
    return f"elements = {{ {_join(values)} }};" if values else ""
