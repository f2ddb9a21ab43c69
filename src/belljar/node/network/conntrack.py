"""Forgets what the host's connection tracking remembers of a slot, so that its flows do not outlive it by days.

Source: ctnetlink of the kernel (nf_conntrack_netlink.c): a deletion with CTA_FILTER, since 5.8, takes every entry that
matches the parts of the tuple that the filter names. Older kernels refuse it, since the tuple has no protocol.
"""

from __future__ import annotations

import asyncio
import errno
from ipaddress import IPv4Address

import structlog
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket, NFCTAttrTuple

log = structlog.get_logger()


def forget_flows(source: IPv4Address) -> None:
    """Remove every connection of the calling thread's namespace that came from this address. Blocks.

    A kernel that cannot is told of in the log, and forgets them by itself when they time out.
    """
    try:
        asyncio.run(_forget(source))
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            log.warning("flows_not_forgotten", source=str(source), error=str(error))


async def _forget(source: IPv4Address) -> None:
    orig = NFCTAttrTuple(saddr=str(source))
    orig.attrs()  # counts the flags
    compared = {"attrs": [["CTA_FILTER_ORIG_FLAGS", orig.flags]]}
    async with AsyncNFCTSocket() as connections:
        await connections.entry("del", tuple_orig=orig, filter=compared)
