"""Slows clients that send invalid keys, by address, in a table of bounded size.

An invalid key from a slowed address is answered with 429 instead of 401, for an exponentially growing time. A valid key
is never refused, whatever its address sent before: a key cannot be guessed, and an address may be that of many clients.
Each slowed address has one look at the database at a time, so that a flood of keys leaves the readers to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()

#: Failures of an address without a consequence.
_FREE = 5
_MAX_SECONDS = 60.0
#: An address without a failure for this long has none.
_FORGET_SECONDS = 900.0
_MAX_ADDRESSES = 10_000
#: Addresses of IPv6 count by the network that one client gets.
_IPV6_PREFIX = 64


@dataclass(slots=True)
class _Entry:
    failures: int = 0
    last_at: float = 0.0
    slowed_until: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class FailedAttempts:
    """The failures of each address, the most recent addresses only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def retry_after(self, host: str) -> int | None:
        """Return for how many seconds invalid keys of this address are answered with 429; None: not at all."""
        entry = self._entries.get(network_of(host))
        remaining = entry.slowed_until - self._clock() if entry is not None else 0.0
        return math.ceil(remaining) if remaining > 0 else None

    def turn(self, host: str) -> AbstractAsyncContextManager[None]:
        """Return the turn of a slowed address to look a key up; the others look at once."""
        entry = self._entries.get(network_of(host))
        return entry.turn if entry is not None and entry.failures > _FREE else contextlib.nullcontext()

    def add(self, host: str) -> None:
        """Count an invalid key from this address."""
        network, now = network_of(host), self._clock()
        entry = self._entries.get(network)
        if entry is None or now - entry.last_at > _FORGET_SECONDS:
            if len(self._entries) >= _MAX_ADDRESSES:
                self._entries.popitem(last=False)
            entry = self._entries[network] = _Entry()
        self._entries.move_to_end(network)
        entry.failures += 1
        entry.last_at = now
        if entry.failures > _FREE:
            seconds = min(_MAX_SECONDS, 2.0 ** min(entry.failures - _FREE - 1, 10))
            entry.slowed_until = now + seconds
            if entry.failures.bit_count() == 1:  # 8, 16, 32, …: a flood of keys is no flood of log lines
                log.warning("address_slowed", address=network, failures=entry.failures)

    def __len__(self) -> int:
        return len(self._entries)


def network_of(host: str) -> str:
    """Return what counts as one client: an address of IPv4, a network of IPv6, or "" for anything else."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
