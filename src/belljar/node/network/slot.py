"""One slot: made, opened for one machine's policy, counted, and destroyed. It is never given to a second machine.

A slot that is destroyed takes its connections, its filters, its counters and its table of neighbours along; making the
next one costs a few milliseconds that nobody waits for, and nothing can be forgotten in scrubbing it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar.model.errors import NetworkError
from belljar.node.machines.host.namespace import inside
from belljar.node.machines.host.tap import attach_tap
from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network import namespaces
from belljar.node.network.flows import forget_flows
from belljar.node.network.layout import NAMESPACES, TAP, Layout, namespace_name
from belljar.node.network.links import (
    join_host,
    make_slot_links,
    netlink,
    remove_host_end,
    set_sysctl,
    shape_slot,
    tap_bytes,
)
from belljar.node.network.nft import Nft
from belljar.node.network.policy import Policy
from belljar.node.network.rules import policy_rules, slot_rules
from belljar.node.network.traffic import Traffic, parse_counters, parse_traffic

#: Inside a slot: it routes, has no IPv6, believes no redirect, and answers ARP for the gateway alone.
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
    """Sockets in the slot's namespace that its resolver answers on."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


class Slot:
    """A slot of this process. All methods block for milliseconds: call them in threads."""

    def __init__(
        self, layout: Layout, number: int, path: Path, ears: DnsSockets, rules: Nft, parted: Callable[[int], None]
    ) -> None:
        self.number = number
        self.path = path
        self.ears = ears
        self._layout = layout
        self._parted = parted
        self._rules: Nft | None = rules
        self._removed = False

    @classmethod
    def make(
        cls,
        owner: str,
        number: int,
        layout: Layout,
        joined: Callable[[int], None],
        parted: Callable[[int], None],
    ) -> Slot:
        """Make the slot whose number was reserved. `joined` is called when the host's end of its link is there.

        `parted` is called when it is removed: nothing can come out of it any more, and nobody else has its number yet.
        Raises NetworkError, OSError; then its namespace and its link are the caller's to remove.
        """
        path = NAMESPACES / namespace_name(owner, number)
        host_namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        ears: DnsSockets | None = None
        rules: Nft | None = None
        try:
            ears, rules = namespaces.make(path, lambda: _furnish(layout, number, host_namespace))
            joined(number)
            netlink(lambda route: join_host(route, layout, number))
        except (OSError, NetworkError) as error:
            if ears is not None and rules is not None:
                ears.close()
                rules.close()
            if isinstance(error, NetworkError):
                raise
            raise NetworkError(f"a network could not be made: {error}") from error
        finally:
            os.close(host_namespace)
        return cls(layout, number, path, ears, rules, parted)

    def open_for(self, policy: Policy, mbit: float | None = None) -> None:
        """Let through what the policy allows, so many megabits a second each way; until then nothing passes. Once.

        None: as many as any slot may. Raises NetworkError.
        """
        self.open_by(policy_rules(policy), mbit)

    def open_by(self, commands: str, mbit: float | None) -> None:
        """The same by what `rules.policy_rules` gave. Raises NetworkError."""
        if mbit is not None and mbit < self._layout.mbit:
            inside(self.path, lambda: netlink(lambda route: shape_slot(route, mbit, "replace")))
        rules, self._rules = self._rules, None
        if rules is None:
            raise NetworkError("this network was opened before")
        with rules:
            rules.run(commands)

    def admit(self, commands: list[str]) -> None:
        """Run what `rules.opened` gave. Raises NetworkError."""
        self.run("\n".join(commands))

    def run(self, commands: str) -> None:
        """Run commands of nftables in it. Raises NetworkError."""

        def run() -> None:
            with Nft() as nft:
                nft.run(commands)

        try:
            inside(self.path, run)
        except OSError as error:
            raise NetworkError(f"a network could not be changed: {error}") from error

    def traffic(self) -> Traffic:
        """What went through and what did not, so far. Raises NetworkError."""
        return parse_traffic(*self.read())

    def read(self) -> tuple[tuple[int, int], dict[str, Any], dict[str, Any]]:
        """What `parse_traffic` makes that of. Raises NetworkError."""

        def read() -> tuple[tuple[int, int], dict[str, Any], dict[str, Any]]:
            with Nft() as nft:
                counters = nft.run("list counters")
                # Most jobs are refused nothing.
                refused = parse_counters(counters).get("refused")
                return tap_bytes(), counters, nft.run("list set inet belljar refused_to") if refused else {}

        try:
            return inside(self.path, read)
        except OSError as error:
            raise NetworkError(f"a network could not be read: {error}") from error

    def described(self) -> NetworkSlot:
        """What a machine is told of it."""
        return self._layout.described(self.path)

    def remove(self) -> None:
        """Destroy it, with all that the host remembers of it. Idempotent. Raises NetworkError, OSError.

        Its file goes last: as long as that is there nobody else has its number, and who failed may try again.
        """
        if self._removed:
            return
        self.ears.close()
        if self._rules is not None:
            self._rules.close()
        netlink(lambda route: remove_host_end(route, self.number))
        forget_flows(self._layout.slot_address(self.number))
        self._parted(self.number)
        remove_slot(self.path, self.number)
        self._removed = True


def remove_slot(path: Path, number: int) -> None:
    """Remove a slot's link and namespace, whoever made it. Idempotent. Raises NetworkError."""
    netlink(lambda route: remove_host_end(route, number))
    try:
        namespaces.remove(path)
    except OSError as error:
        raise NetworkError(f"a network could not be removed: {error}") from error


def _furnish(layout: Layout, number: int, host_namespace: int) -> tuple[DnsSockets, Nft]:
    """In the new namespace: filters first, so that at no time anything passes that they do not let through.

    Returns where its resolver listens, and what a policy is loaded by: fresh, so that it holds nothing yet, and made
    there, so that whoever claims the slot need not enter the namespace.
    """
    for name, value in _SYSCTLS:
        set_sysctl(name, value)
    os.close(attach_tap(TAP, persist=True))
    with Nft() as nft:
        nft.run(slot_rules(layout, number))
    netlink(lambda route: make_slot_links(route, layout, number, host_namespace))
    return _listen(str(layout.gateway)), Nft()


def _listen(address: str) -> DnsSockets:
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
