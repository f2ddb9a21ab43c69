"""The host's side of this process's slots: a table of its own in the host's nftables, and forwarding.

Nothing of the host's own firewall is read, changed or flushed. The table is there while this process has slots.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable

import structlog

from belljar.model.errors import NetworkError
from belljar.node.machines.host.descriptors import check_descriptors
from belljar.node.network import state
from belljar.node.network.layout import NAMESPACES, Layout, host_interface, namespace_name
from belljar.node.network.namespaces import reserve
from belljar.node.network.nft import Nft
from belljar.node.network.policy import NetworkRule
from belljar.node.network.rules import host_rules, host_table, removed
from belljar.node.network.slot import Slot, remove_slot

log = structlog.get_logger()

#: More than the making of a slot takes at once; without them it would fail half-way, and its removal too.
_SLOT_DESCRIPTORS = 32
#: Tells the pools of one process apart.
_POOLS = itertools.count()


class HostSide:
    """One process's share of the host. Its methods block for milliseconds: call them in threads."""

    def __init__(self, owner: str, layout: Layout, excepted: Iterable[NetworkRule]) -> None:
        self._owner = owner
        self._pool = next(_POOLS)
        self._layout = layout
        self._excepted = tuple(excepted)
        self._table = host_table(owner, self._pool)
        self._nft: Nft | None = None
        #: Numbers of slots that could not be made, and that still have to be cleaned up after.
        self._failed: deque[int] = deque()

    @property
    def alive(self) -> bool:
        """Whether slots can be made here: a host does not go away."""
        return True

    def open(self) -> None:
        """Load the table and let the host route. Raises NetworkError, and changes nothing then."""
        nft = Nft()
        try:
            with state.host_lock():
                state.add_user(self._owner, self._pool)
                nft.run(removed(self._table) + host_rules(self._table, self._layout, self._excepted))
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
        self._clear_failed()
        with state.host_lock():
            state.remove_user(self._owner, self._pool)
            self._nft.run(removed(self._table))
            state.restore_forwarding(self._nft)
        self._nft.close()
        self._nft = None

    def reserve(self) -> int:
        """Take a slot's number. Raises NetworkError."""
        with state.host_lock():
            return reserve(self._owner, self._layout.most_slots)

    def make_slot(self) -> Slot:
        """A slot with a number of its own. Raises NetworkError, OSError; what cannot be cleaned up then is, later."""
        check_descriptors(_SLOT_DESCRIPTORS)
        self._clear_failed()
        number = self.reserve()
        try:
            return Slot.make(self._owner, number, self._layout, self.join, self.part)
        except BaseException:
            self._failed.append(number)
            self._clear_failed()
            raise

    def _clear_failed(self) -> None:
        """Remove what is left of slots that could not be made, whose numbers nobody else has meanwhile."""
        for _ in range(len(self._failed)):
            try:
                number = self._failed.popleft()
            except IndexError:  # another thread has it
                return
            try:
                self.part(number)
                remove_slot(NAMESPACES / namespace_name(self._owner, number), number)
            except (OSError, NetworkError) as error:
                log.warning("slot_left", number=number, error=str(error))
                self._failed.append(number)

    def join(self, number: int) -> None:
        """Let in what comes out of slot `number`, under the table's rules."""
        self._run(f'add element inet {self._table} slots {{ "{host_interface(number)}" }}')

    def part(self, number: int) -> None:
        """Forget slot `number`."""
        element = f'element inet {self._table} slots {{ "{host_interface(number)}" }}'
        self._run(f"add {element}\ndelete {element}")  # whether it is there or not

    def _run(self, command: str) -> None:
        if self._nft is None:
            raise NetworkError("the host's networking is not set up")
        self._nft.run(command)
