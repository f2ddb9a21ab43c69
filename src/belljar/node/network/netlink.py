"""Devices, addresses, routes and shaping over netlink (pyroute2), in whatever namespace the calling thread is."""

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
    HostFacts,
    Layout,
    host_interface,
)

T = TypeVar("T")

_RT_TABLE_LOCAL = 255
_RT_SCOPE_LINK = 253
_RTN_UNICAST = 1
_NUD_PERMANENT = 0x80
#: A machine's frames may be 64 KiB when it leaves segmentation to the host; a bucket must hold some.
_MIN_BURST_BYTES = 256 * 1024


def netlink(work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work` with a netlink socket of the calling thread's namespace. Blocks. Raises NetworkError."""

    async def run() -> T:
        async with AsyncIPRoute() as route:
            return await work(route)

    try:
        return asyncio.run(run())
    except NetlinkError as error:
        raise NetworkError(f"the kernel refused to set a network up: {error}") from error


async def make_slot_links(route: Any, layout: Layout, number: int, host_namespace: int) -> None:
    """Inside the slot's new namespace, which has its TAP device: everything else, and a link to the host's."""
    peer = {"ifname": host_interface(number), "net_ns_fd": host_namespace}
    await route.link("add", ifname=UPLINK, kind="veth", peer=peer)
    tap, uplink = socket.if_nametoindex(TAP), socket.if_nametoindex(UPLINK)
    await route.link("set", index=tap, address=GATEWAY_MAC, mtu=layout.mtu, state="up")
    await route.link("set", index=uplink, mtu=layout.mtu, state="up")
    prefix = layout.guest_network.prefixlen
    await route.addr("add", index=tap, address=str(layout.gateway), prefixlen=prefix)
    await route.addr("add", index=uplink, address=str(layout.slot_address(number)), prefixlen=31)
    await route.route("add", dst="default", gateway=str(layout.host_address(number)))
    # The gateway never has to ask who the guest is, and cannot be told otherwise.
    await route.neigh("add", dst=str(layout.guest), lladdr=GUEST_MAC, ifindex=tap, state=_NUD_PERMANENT)
    await shape_slot(route, layout.mbit, "add")


async def shape_slot(route: Any, mbit: float, verb: str) -> None:
    """Inside a slot's namespace: so many megabits a second each way, `add`ed or in place of (`replace`) what was."""
    bytes_per_second = int(mbit * 125_000)
    burst = max(_MIN_BURST_BYTES, bytes_per_second // 250)
    for name in (TAP, UPLINK):  # to the guest, and from it
        index = socket.if_nametoindex(name)
        await route.tc(verb, "tbf", index=index, handle="1:", rate=bytes_per_second, burst=burst, latency="50ms")


async def join_host(route: Any, layout: Layout, number: int) -> None:
    """On the host: the other end of slot `number`'s link."""
    name = host_interface(number)
    index = socket.if_nametoindex(name)
    with contextlib.suppress(FileNotFoundError):  # a host without IPv6
        set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "1")
    await route.addr("add", index=index, address=str(layout.host_address(number)), prefixlen=31)
    await route.link("set", index=index, mtu=layout.mtu, state="up")


async def remove_host_end(route: Any, number: int) -> None:
    """Remove the link, both ends of it; at once, while a namespace may go later. None there: nothing to do."""
    try:
        index = socket.if_nametoindex(host_interface(number))
    except OSError:
        return
    await route.link("del", index=index)


async def slot_address_there(route: Any, number: int) -> IPv4Address | None:
    """The address of slot `number`, whoever made it, as the host's end of its link tells; None without a link."""
    try:
        index = socket.if_nametoindex(host_interface(number))
    except OSError:
        return None
    async for each in await route.addr("dump", family=socket.AF_INET, index=index):
        return IPv4Address(each.get("local") or each.get("address")) + 1  # of the /31
    return None


def tap_bytes() -> tuple[int, int]:
    """Bytes that went to the guest and that came from it, as its TAP device counted them. Raises OSError.

    From proc(5), for which the kernel takes no lock: a netlink answer would wait for devices that are just going.
    """
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == TAP:
            fields = numbers.split()
            return int(fields[8]), int(fields[0])
    raise FileNotFoundError(f"there is no {TAP}")


async def host_facts(route: Any) -> HostFacts:
    """What this host is connected to; belljar's own links are left out."""
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
    return HostFacts(addresses=addresses, connected=tuple(connected), routed=tuple(routed), mtu=mtu)


def set_sysctl(name: str, value: str) -> None:
    """Write a sysctl of the calling thread's namespace, by its path below /proc/sys. Raises OSError."""
    (Path("/proc/sys") / name).write_text(value)
