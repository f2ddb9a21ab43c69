"""Devices, addresses, routes and traffic shaping over netlink (pyroute2), in the calling thread's namespace."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from belljar.model.errors import NetworkError
from belljar.node.machines.protocol import GUEST_MAC
from belljar.node.network.layout import (
    GATEWAY_MAC,
    HOST_PREFIX,
    MAX_MTU,
    TAP,
    UPLINK,
    HostNetworks,
    Layout,
    host_interface,
)

T = TypeVar("T")

_RT_TABLE_LOCAL = 255
_RT_SCOPE_LINK = 253
_RTN_UNICAST = 1
_NUD_PERMANENT = 0x80
#: Bytes of the token bucket: it must hold a few frames of 64 KiB, which a machine sends with segmentation offload.
_MIN_BURST_BYTES = 256 * 1024


def run_netlink(work: Callable[[Any], Awaitable[T]]) -> T:
    """Return the result of `work` with a netlink socket of this thread's namespace. Blocks. Raises NetworkError."""

    async def run() -> T:
        async with AsyncIPRoute() as route:
            return await work(route)

    try:
        return asyncio.run(run())
    except NetlinkError as error:
        raise NetworkError(f"the kernel rejected a network change: {error}") from error


async def create_slot_links(route: Any, layout: Layout, number: int, host_namespace: int) -> None:
    """Set up the links, addresses and routes inside a slot's new namespace, which has its TAP device already."""
    peer = {"ifname": host_interface(number), "net_ns_fd": host_namespace}
    await route.link("add", ifname=UPLINK, kind="veth", peer=peer)
    tap, uplink = socket.if_nametoindex(TAP), socket.if_nametoindex(UPLINK)
    await route.link("set", index=tap, address=GATEWAY_MAC, mtu=layout.mtu, state="up")
    await route.link("set", index=uplink, mtu=layout.mtu, state="up")
    prefix = layout.guest_network.prefixlen
    await route.addr("add", index=tap, address=str(layout.gateway), prefixlen=prefix)
    await route.addr("add", index=uplink, address=str(layout.slot_address(number)), prefixlen=31)
    await route.route("add", dst="default", gateway=str(layout.host_address(number)))
    # The gateway never asks for the guest's MAC, so that no ARP reply can change it.
    await route.neigh("add", dst=str(layout.guest), lladdr=GUEST_MAC, ifindex=tap, state=_NUD_PERMANENT)
    await shape_slot(route, layout.mbit, "add")


async def shape_slot(route: Any, mbit: float, verb: str) -> None:
    """Limit a slot to `mbit` megabits a second each way; `verb` is `add` or `replace`. Call inside its namespace."""
    bytes_per_second = int(mbit * 125_000)
    burst = max(_MIN_BURST_BYTES, bytes_per_second // 250)
    for name in (TAP, UPLINK):  # to the guest, and from it
        index = socket.if_nametoindex(name)
        await route.tc(verb, "tbf", index=index, handle="1:", rate=bytes_per_second, burst=burst, latency="50ms")


async def configure_host_end(route: Any, layout: Layout, number: int) -> None:
    """Set up the host's end of slot `number`'s link."""
    name = host_interface(number)
    index = socket.if_nametoindex(name)
    with contextlib.suppress(FileNotFoundError):  # a host without IPv6
        set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    await route.addr("add", index=index, address=str(layout.host_address(number)), prefixlen=31)
    await route.link("set", index=index, mtu=layout.mtu, state="up")


async def remove_host_end(route: Any, number: int) -> None:
    """Remove both ends of a slot's link at once; its namespace may outlive it. Do nothing without a link."""
    try:
        index = socket.if_nametoindex(host_interface(number))
    except OSError:
        return
    await route.link("del", index=index)


async def find_slot_address(route: Any, number: int) -> IPv4Address | None:
    """Return the address of slot `number` of any owner, derived from the host's end of its link; None without one."""
    try:
        index = socket.if_nametoindex(host_interface(number))
    except OSError:
        return None
    async for each in await route.addr("dump", family=socket.AF_INET, index=index):
        return IPv4Address(each.get("local") or each.get("address")) + 1  # of the /31
    return None


def read_tap_bytes() -> tuple[int, int]:
    """Return the bytes sent to and received from the guest, as counted by its TAP device. Raises OSError.

    Reads proc(5), for which the kernel takes no lock: netlink would wait for devices that are being removed.
    """
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == TAP:
            fields = numbers.split()
            return int(fields[8]), int(fields[0])
    raise FileNotFoundError(f"no device {TAP}")


async def read_host_networks(route: Any) -> HostNetworks:
    """Return the host's addresses and networks, without belljar's own links."""
    ours, mtus = set(), {}
    async for link in await route.link("dump"):
        mtus[link["index"]] = int(link.get("mtu") or MAX_MTU)
        if str(link.get("ifname")).startswith(HOST_PREFIX):
            ours.add(link["index"])
    addresses = tuple(
        [
            IPv4Address(each.get("local") or each.get("address"))
            async for each in await route.addr("dump", family=socket.AF_INET)
            if each["index"] not in ours
        ]
    )
    connected, routed, mtu = [], [], MAX_MTU
    async for each in await route.route("dump", family=socket.AF_INET):
        out = each.get("oif")
        if each.get("table") == _RT_TABLE_LOCAL or each["type"] != _RTN_UNICAST or out in ours:
            continue
        if each.get("dst") is None:
            mtu = min(mtu, mtus.get(out, MAX_MTU))
            continue
        network = IPv4Network(f"{each.get('dst')}/{each['dst_len']}")
        routed.append(network)
        if each["scope"] == _RT_SCOPE_LINK:
            connected.append(network)
    return HostNetworks(addresses=addresses, connected=tuple(connected), routed=tuple(routed), mtu=mtu)


def set_sysctl(name: str, value: str) -> None:
    """Write a sysctl of the calling thread's namespace, by its path below /proc/sys. Raises OSError."""
    (Path("/proc/sys") / name).write_text(value)
