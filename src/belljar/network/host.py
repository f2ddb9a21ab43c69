"""The host's side of this process's slots: a table of its own in the host's nftables, forwarding, and what the dead left.

Nothing of the host's own firewall is read, changed or flushed. The table is there while this process has slots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import structlog

from belljar.errors import BelljarError, NetworkError
from belljar.machines.owner import is_dead
from belljar.network import state
from belljar.network.layout import NAMESPACES, Layout, host_interface
from belljar.network.namespaces import all_slots, reserve
from belljar.network.nft import Nft
from belljar.network.policy import NetworkRule
from belljar.network.rules import host_rules, host_table, table_owner

log = structlog.get_logger()


class HostSide:
    """One process's share of the host. Its methods block for milliseconds: call them in threads."""

    def __init__(self, owner: str, layout: Layout, excepted: Iterable[NetworkRule]) -> None:
        self._owner = owner
        self._layout = layout
        self._excepted = tuple(excepted)
        self._table = host_table(owner)
        self._nft: Nft | None = None

    def open(self) -> None:
        """Load the table and let the host route. Raises NetworkError, and changes nothing then."""
        nft = Nft()
        try:
            with state.host_lock():
                state.add_user(self._owner)
                nft.run(_replaced(self._table) + host_rules(self._table, self._layout, self._excepted))
                state.turn_forwarding_on(nft)
        except (OSError, NetworkError) as error:
            self._nft = nft
            self.close()
            raise NetworkError(f"the host's networking could not be set up: {error}") from error
        self._nft = nft

    def close(self) -> None:
        """Remove the table, and restore forwarding when no other belljar needs it. Idempotent."""
        if self._nft is None:
            return
        with state.host_lock():
            state.remove_user(self._owner)
            self._nft.run(_replaced(self._table))
            state.restore_forwarding(self._nft)
        self._nft.close()
        self._nft = None

    def reserve(self) -> int:
        """Take a slot's number. Raises NetworkError."""
        with state.host_lock():
            return reserve(self._owner, self._layout.most_slots)

    def join(self, number: int) -> None:
        """Let in what comes out of slot `number`, under the table's rules."""
        self._run(f'add element inet {self._table} slots {{ "{host_interface(number)}" }}')

    def part(self, number: int) -> None:
        """Forget slot `number`."""
        self._run(f'delete element inet {self._table} slots {{ "{host_interface(number)}" }}')

    def _run(self, command: str) -> None:
        if self._nft is None:
            raise NetworkError("the host's networking is not set up")
        self._nft.run(command)


def clear_network_leftovers() -> int:
    """Remove slots and tables of owners that are dead, and restore forwarding; returns how many owners that were.

    Blocks. Raises nothing: what cannot be removed is told of in the log, and tried again at the next start.
    """
    if not state.in_use():
        return 0
    cleared = 0
    with state.host_lock():
        dead = {owner for owner in state.users() if is_dead(owner)}
        dead |= {owner for _, owner, _ in all_slots() if is_dead(owner)}
        nft: Nft | None = None
        try:
            for owner in sorted(dead):
                nft = nft or Nft()
                _clear(owner, nft)
                cleared += 1
            if dead and nft is not None:
                _clear_tables(nft)
                state.restore_forwarding(nft)
        except (OSError, BelljarError) as error:
            log.warning("network_leftovers_stay", error=str(error))
        finally:
            if nft is not None:
                nft.close()
    return cleared


def _clear(owner: str, nft: Nft) -> None:
    from belljar.network.slot import remove_slot

    for name, slot_owner, number in all_slots():
        if slot_owner == owner:
            remove_slot(NAMESPACES / name, number)
    nft.run(_replaced(host_table(owner)))
    state.remove_user(owner)


def _clear_tables(nft: Nft) -> None:
    """Tables whose owner's file was lost."""
    for each in nft.run("list tables inet").get("nftables", ()):
        owner = table_owner(str(each.get("table", {}).get("name", "")))
        if owner is not None and is_dead(owner):
            with contextlib.suppress(NetworkError):
                nft.run(_replaced(host_table(owner)))


def _replaced(table: str) -> str:
    """Commands that remove a table whether it is there or not."""
    return f"add table inet {table}\ndelete table inet {table}\n"
