"""Removes a slot's flows from the host's connection tracking, where they would outlive the slot by days.

Source: ctnetlink of the kernel (nf_conntrack_netlink.c): a deletion with CTA_FILTER, since 5.8, removes every entry
that matches the parts of the tuple that the filter names. Older kernels reject it, since the tuple has no protocol.
"""

from __future__ import annotations

import asyncio
import errno
from ipaddress import IPv4Address

import structlog
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import AsyncNFCTSocket, NFCTAttrTuple

log = structlog.get_logger()


def flush_flows(source: IPv4Address) -> None:
    """Remove every flow from this address in the calling thread's namespace. Blocks.

    Raises nothing: a kernel that rejects it is logged, and the flows stay until they time out.
    """
    try:
        asyncio.run(_flush(source))
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            log.warning("conntrack_flush_failed", source=str(source), error=str(error))


async def _flush(source: IPv4Address) -> None:
    orig = NFCTAttrTuple(saddr=str(source))
    orig.attrs()  # counts the flags
    compared = {"attrs": [["CTA_FILTER_ORIG_FLAGS", orig.flags]]}
    async with AsyncNFCTSocket() as connections:
        await connections.entry("del", tuple_orig=orig, filter=compared)
