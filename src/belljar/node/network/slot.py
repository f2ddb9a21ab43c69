"""One slot in the kernel's own network namespace, from creation to removal. It must never serve a second machine.

Removing the slot removes its connections, filters, counters and neighbour table: there is no state to reset, and no
reset that could miss some. Creating the next slot takes milliseconds, off the critical path.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from belljar.model.errors import NetworkError
from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.host.tap import attach_tap
from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network import namespaces
from belljar.node.network.conntrack import flush_flows
from belljar.node.network.flows.conntrack import ConnectionCounter, enable_accounting
from belljar.node.network.flows.libbpf import BpfUnavailable
from belljar.node.network.flows.program import FlowProgram
from belljar.node.network.flows.reading import FlowReading
from belljar.node.network.layout import NAMESPACES, TAP, UPLINK, Layout, namespace_name
from belljar.node.network.netlink import (
    configure_host_end,
    create_slot_links,
    read_tap_bytes,
    remove_host_end,
    run_netlink,
    set_sysctl,
    shape_slot,
)
from belljar.node.network.nft import Nft
from belljar.node.network.policy import Policy
from belljar.node.network.rules import SLOT_TABLE, policy_rules, slot_rules
from belljar.node.network.traffic import Traffic, parse_counters, parse_refused, parse_traffic

#: Inside a slot: forward, disable IPv6, ignore and send no redirects, answer ARP only for the gateway.
_SYSCTLS = (
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    ("net/ipv4/conf/default/accept_redirects", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/arp_ignore", "2"),
    ("net/ipv4/conf/all/rp_filter", "1"),
)


@dataclass(frozen=True, slots=True)
class DnsSockets:
    """The sockets in a slot's namespace that its resolver serves."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        """Close both sockets."""
        self.udp.close()
        self.tcp.close()


@dataclass(frozen=True, slots=True)
class SlotParts:
    """What was opened in a slot's new namespace."""

    dns_sockets: DnsSockets
    #: Applies the policy: created here, it spares the claim of the slot from entering the namespace.
    rules: Nft
    flow_counter: FlowProgram | ConnectionCounter

    def close(self) -> None:
        """Close them all."""
        self.dns_sockets.close()
        self.rules.close()
        if isinstance(self.flow_counter, FlowProgram):
            self.flow_counter.close()


class KernelSlot:
    """A slot in a network namespace. All methods block for milliseconds: call them in threads."""

    def __init__(
        self,
        layout: Layout,
        number: int,
        path: Path,
        dns_sockets: DnsSockets,
        rules: Nft,
        flow_counter: FlowProgram | ConnectionCounter,
        on_removed: Callable[[int], None],
    ) -> None:
        self.number = number
        self.path = path
        self.dns_sockets = dns_sockets
        self._layout = layout
        self._on_removed = on_removed
        self._rules: Nft | None = rules
        self._flow_counter = flow_counter
        self._removed = False

    @classmethod
    def create(
        cls,
        owner: str,
        number: int,
        layout: Layout,
        on_joined: Callable[[int], None],
        on_removed: Callable[[int], None],
    ) -> KernelSlot:
        """Create the slot whose number was reserved. Calls `on_joined` once the host's end of its link exists.

        Calls `on_removed` during removal, when no packet can leave the slot and its number is still reserved. Raises
        NetworkError, OSError; the caller then removes its namespace and its link.
        """
        path = NAMESPACES / namespace_name(owner, number)
        host_namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        parts: SlotParts | None = None
        try:
            parts = namespaces.create(path, lambda: _set_up_namespace(layout, number, host_namespace))
            on_joined(number)
            run_netlink(lambda route: configure_host_end(route, layout, number))
        except (OSError, NetworkError) as error:
            if parts is not None:
                parts.close()
            if isinstance(error, NetworkError):
                raise
            raise NetworkError(f"cannot create a network: {error}") from error
        finally:
            os.close(host_namespace)
        return cls(layout, number, path, parts.dns_sockets, parts.rules, parts.flow_counter, on_removed)

    def apply_policy(self, policy: Policy, mbit: float | None = None) -> None:
        """Apply the policy, and limit the slot to `mbit` megabits a second each way (None: the setting). Call it once.

        Nothing passes before. Raises NetworkError.
        """
        self.apply_commands(policy_rules(policy), mbit)

    def apply_commands(self, commands: str, mbit: float | None) -> None:
        """Apply the commands of `rules.policy_rules`, as `apply_policy` does. Raises NetworkError."""
        if mbit is not None and mbit < self._layout.mbit:
            run_in_namespace(self.path, lambda: run_netlink(lambda route: shape_slot(route, mbit, "replace")))
        rules, self._rules = self._rules, None
        if rules is None:
            raise NetworkError("a policy was already applied to this network")
        with rules:
            rules.run(commands)

    def allow(self, commands: list[str]) -> None:
        """Run the commands of `rules.allow_addresses`. Raises NetworkError."""
        self.run("\n".join(commands))

    def run(self, commands: str) -> None:
        """Run nftables commands in the slot's namespace. Raises NetworkError."""

        def run() -> None:
            with Nft() as nft:
                nft.run(commands)

        try:
            run_in_namespace(self.path, run)
        except OSError as error:
            raise NetworkError(f"cannot change a network: {error}") from error

    def read_traffic(self) -> Traffic:
        """Return the traffic and refusals so far. Raises NetworkError."""
        return parse_traffic(*self.read_counters())

    def read_counters(self) -> tuple[tuple[int, int], dict[str, Any], dict[str, Any]]:
        """Return the arguments of `parse_traffic`. Raises NetworkError."""

        def read_counters() -> tuple[tuple[int, int], dict[str, Any], dict[str, Any]]:
            with Nft() as nft:
                counters = nft.run("list counters")
                # Most jobs have no refusals.
                refused = parse_counters(counters).get("refused")
                return (
                    read_tap_bytes(),
                    counters,
                    _list_refused(nft) if refused else {},
                )

        try:
            return run_in_namespace(self.path, read_counters)
        except OSError as error:
            raise NetworkError(f"cannot read a network's counters: {error}") from error

    def read_flows(self) -> FlowReading:
        """Return the flows so far. Raises NetworkError."""
        counter = self._flow_counter
        if isinstance(counter, FlowProgram):
            try:
                return counter.read()
            except BpfUnavailable as error:
                raise NetworkError(f"cannot read a network's flows: {error}") from error

        def read() -> FlowReading:
            with Nft() as nft:
                refused = list(parse_refused(_list_refused(nft)))
            return counter.read(self._layout.guest, refused)

        try:
            return run_in_namespace(self.path, read)
        except (OSError, NetlinkError) as error:
            raise NetworkError(f"cannot read a network's flows: {error}") from error

    def network_slot(self) -> NetworkSlot:
        """Return the slot as its machine needs it."""
        return self._layout.network_slot(self.path)

    def remove(self) -> None:
        """Remove the slot and its flows from the host. Idempotent. Raises NetworkError, OSError.

        Its file is removed last, which keeps its number reserved, so that a failed removal can be retried.
        """
        if self._removed:
            return
        self.dns_sockets.close()
        if self._rules is not None:
            self._rules.close()
        run_netlink(lambda route: remove_host_end(route, self.number))
        flush_flows(self._layout.slot_address(self.number))
        self._on_removed(self.number)
        if isinstance(self._flow_counter, FlowProgram):
            self._flow_counter.close()
        remove_slot(self.path, self.number)
        self._removed = True


def remove_slot(path: Path, number: int) -> None:
    """Remove the link and namespace of any owner's slot. Idempotent. Raises NetworkError."""
    run_netlink(lambda route: remove_host_end(route, number))
    try:
        namespaces.remove(path)
    except OSError as error:
        raise NetworkError(f"cannot remove a network: {error}") from error


def _list_refused(nft: Nft) -> dict[str, Any]:
    return nft.run(f"list set inet {SLOT_TABLE} refused_destinations")


def _set_up_namespace(layout: Layout, number: int, host_namespace: int) -> SlotParts:
    """Set up a slot inside its new namespace, filters first, so that no packet passes unfiltered."""
    for name, value in _SYSCTLS:
        set_sysctl(name, value)
    os.close(attach_tap(TAP, persist=True))
    with Nft() as nft:
        nft.run(slot_rules(layout, number))
    run_netlink(lambda route: create_slot_links(route, layout, number, host_namespace))
    return SlotParts(_open_dns_sockets(str(layout.gateway)), Nft(), _open_flow_counter(layout))


def _open_flow_counter(layout: Layout) -> FlowProgram | ConnectionCounter:
    """Attach the BPF program to the slot's devices; where that cannot be, let connections be counted.

    Raises OSError.
    """
    if not layout.count_flows:
        return ConnectionCounter("the setting network_flows is off")
    try:
        return FlowProgram(TAP, UPLINK, layout.gateway)
    except BpfUnavailable as error:
        enable_accounting()
        return ConnectionCounter(str(error))


def _open_dns_sockets(address: str) -> DnsSockets:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        udp.bind((address, 53))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((address, 53))
        tcp.listen(8)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return DnsSockets(udp, tcp)
