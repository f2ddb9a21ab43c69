"""Checks of networks for jobs: what they need, and what on this host would block them.

A host without networks still runs every job that needs none, so nothing here is worse than a warning.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from belljar.doctor.check import Check
from belljar.model.errors import BelljarError
from belljar.settings import Settings

_IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_ALLOW = (
    "nft insert rule {family} {table} {chain} iifname 'belljar*' accept; "
    "nft insert rule {family} {table} {chain} oifname 'belljar*' ct state established,related accept"
)


async def check_networks(settings: Settings) -> AsyncIterator[Check]:
    """Check everything that networks for jobs need."""
    from belljar.node.network.layout import build_layout
    from belljar.node.network.netlink import read_host_networks, run_netlink
    from belljar.node.network.pool import nameservers, network_unavailable_reason

    if (why := network_unavailable_reason()) is not None:
        yield Check("networks", "warn", why, "jobs run without a network; run as root for jobs with one")
        return
    if os.geteuid() != 0:
        yield await _check_rootless(settings)
        servers = ", ".join(map(str, nameservers(settings)))
        yield Check("name servers", "ok", f"names are resolved by {servers}")
        return
    try:
        layout = build_layout(settings, await asyncio.to_thread(run_netlink, read_host_networks))
        tables = await asyncio.to_thread(_try_slot)
    except (BelljarError, OSError) as error:
        message = error.message if isinstance(error, BelljarError) else str(error)
        yield Check("networks", "warn", message, "jobs run without a network until this is fixed")
        return
    yield Check(
        "networks",
        "ok",
        f"namespaces, TAP devices and nftables work; addresses {layout.network_range}, MTU {layout.mtu}",
    )
    if settings.network_flows == "on":
        yield await asyncio.to_thread(_check_flows)
    servers = ", ".join(map(str, nameservers(settings)))
    yield Check("name servers", "ok", f"names are resolved by {servers}")
    forwards = _IP_FORWARD.read_text().strip() == "1"
    yield Check("forwarding", "ok", "on" if forwards else "off; belljar turns it on while jobs have networks")
    for family, table, chain in blocking_chains(tables):
        yield Check(
            "firewall",
            "warn",
            f"the chain {family} {table} {chain} drops forwarded packets by default, perhaps those of jobs",
            _ALLOW.format(family=family, table=table, chain=chain),
        )


async def _check_rootless(settings: Settings) -> Check:
    """Check whether an ordinary user can have a network here, by creating one."""
    from belljar.node.machines.host.owner import owner_name
    from belljar.node.network.layout import build_layout
    from belljar.node.network.netlink import read_host_networks, run_netlink
    from belljar.node.network.rootless import RootlessBackend

    def try_one() -> None:
        host = RootlessBackend(owner_name(os.getpid()), build_layout(settings, run_netlink(read_host_networks)), ())
        try:
            host.open()
            host.create_slot().remove()
        finally:
            host.close()

    try:
        await asyncio.to_thread(try_one)
    except BelljarError as error:
        return Check("networks", "warn", error.message, "jobs run without a network until this is fixed")
    return Check("networks", "ok", "in namespaces of this user; slirp4netns connects them")


def _check_flows() -> Check:
    """Check whether flows are counted by BPF, by attaching the program to a device in a namespace of its own."""
    from ipaddress import IPv4Address

    from belljar.node.machines.host.namespace import in_fresh_thread, unshare_network
    from belljar.node.network.flows.libbpf import BpfUnavailable
    from belljar.node.network.flows.program import FlowProgram

    def inside() -> None:
        unshare_network()
        FlowProgram("lo", "lo", IPv4Address(0)).close()

    try:
        in_fresh_thread(inside)
    except (BpfUnavailable, OSError) as error:
        reason = f"{error}; connection tracking counts instead, without names of TLS and HTTP"
        return Check("flows", "warn", reason, "as root on Linux 5.12 or newer: apt-get install libbpf1")
    return Check("flows", "ok", "counted by BPF")


def _try_slot() -> dict[str, Any]:
    """Create the parts of a slot and remove them; return the host's chains. Raises OSError, NetworkError."""
    from belljar.node.machines.host.namespace import in_fresh_thread, unshare_network
    from belljar.node.machines.host.tap import attach_tap
    from belljar.node.network.nft import Nft

    def inside() -> None:
        unshare_network()
        os.close(attach_tap("tap0"))
        nft = Nft()
        try:
            nft.run("add table inet belljar\nadd counter inet belljar tried")
        finally:
            nft.close()

    in_fresh_thread(inside)
    nft = Nft()
    try:
        return nft.run("list chains")
    finally:
        nft.close()


def blocking_chains(printed: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return family, table and name of the chains in `list chains` that drop forwarded packets by default."""
    return [
        (str(chain["family"]), str(chain["table"]), str(chain["name"]))
        for chain in (each["chain"] for each in printed.get("nftables", ()) if "chain" in each)
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain["family"] in ("ip", "inet")
    ]
