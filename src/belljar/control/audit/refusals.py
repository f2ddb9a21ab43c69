"""Counts refused requests, so that a flood of them becomes a few rows of the audit log.

The first refusal of a group (the same actor or network, action and status) is recorded at once. Further ones are
counted, and recorded together once a minute. The number of groups is bounded: what exceeds it shares a group.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from belljar.control.audit.entry import ANONYMOUS, Entry

WINDOW_SECONDS = 60.0
_MAX_GROUPS = 1000

#: The actor's id or the client's network, the action, and the status.
_Group = tuple[str, str, str]


@dataclass(slots=True)
class _Count:
    """The refusals of one group since its window began."""

    began_at: float
    number: int = 0
    last: Entry | None = None


class Refusals:
    """The groups of refused requests, and the entries that are to be written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[_Group, _Count] = {}
        self._pending: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Count one refused request."""
        group = _group_of(entry)
        if group not in self._counts and len(self._counts) >= _MAX_GROUPS:
            entry = dataclasses.replace(entry, actor=ANONYMOUS, project=None, object=None, address=None)
            group = ("", entry.action, str(entry.details.get("status")))
        count = self._counts.get(group)
        if count is None:
            self._counts[group] = _Count(self._clock())
            self._pending.append(entry)
        else:
            count.number += 1
            count.last = entry

    def take(self, *, all_counts: bool = False) -> list[Entry]:
        """Return the entries that are to be written now; with `all_counts`, also of windows that are not over."""
        taken, self._pending = self._pending, []
        now = self._clock()
        for group, count in list(self._counts.items()):
            if not all_counts and now - count.began_at < WINDOW_SECONDS:
                continue
            if count.last is None:
                del self._counts[group]
                continue
            details = {**count.last.details, "count": count.number, "seconds": round(now - count.began_at)}
            taken.append(dataclasses.replace(count.last, details=details))
            self._counts[group] = _Count(now)
        return taken

    def put_back(self, entries: list[Entry]) -> None:
        """Keep entries that could not be written for the next time, within the bound."""
        self._pending = [*entries, *self._pending][: 2 * _MAX_GROUPS]


def _group_of(entry: Entry) -> _Group:
    return entry.actor.id or network_of(entry.address), entry.action, str(entry.details.get("status"))


def network_of(address: str | None) -> str:
    """Return the network that counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return address or ""
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
