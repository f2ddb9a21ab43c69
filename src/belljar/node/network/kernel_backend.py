"""The backend for root: slots in the kernel's network namespaces, a table in the host's nftables, and forwarding.

It must not read, change or flush any other table of the host's firewall. Its table exists while the backend is open.
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
from belljar.node.network.namespaces import reserve_number
from belljar.node.network.nft import Nft
from belljar.node.network.policy import NetworkRule
from belljar.node.network.rules import delete_table, host_rules, host_table_name
from belljar.node.network.slot import KernelSlot, remove_slot

log = structlog.get_logger()

#: More descriptors than creating a slot needs at once; with fewer, creation and its clean-up would both fail.
_SLOT_DESCRIPTORS = 48
#: Numbers the pools of one process.
_POOLS = itertools.count()


class KernelBackend:
    """The backend that uses the kernel's own interfaces. Its methods block for milliseconds: call them in threads."""

    def __init__(self, owner: str, layout: Layout, exceptions: Iterable[NetworkRule]) -> None:
        self._owner = owner
        self._pool = next(_POOLS)
        self._layout = layout
        self._exceptions = tuple(exceptions)
        self._table = host_table_name(owner, self._pool)
        self._nft: Nft | None = None
        #: Numbers of slots that could not be created and are not cleaned up yet.
        self._failed_numbers: deque[int] = deque()

    @property
    def alive(self) -> bool:
        """Return True: the kernel's interfaces stay available."""
        return True

    def open(self) -> None:
        """Load the table and enable forwarding. Raises NetworkError, having changed nothing."""
        nft = Nft()
        try:
            with state.host_lock():
                state.add_user(self._owner, self._pool)
                nft.run(delete_table(self._table) + host_rules(self._table, self._layout, self._exceptions))
                state.enable_forwarding(nft)
        except (OSError, NetworkError) as error:
            self._nft = nft
            self.close()
            raise NetworkError(f"cannot set up networking on this host: {error}") from error
        self._nft = nft

    def close(self) -> None:
        """Remove the table, and restore forwarding unless another belljar needs it. Idempotent."""
        if self._nft is None:
            return
        self._remove_failed()
        with state.host_lock():
            state.remove_user(self._owner, self._pool)
            self._nft.run(delete_table(self._table))
            state.restore_forwarding(self._nft)
        self._nft.close()
        self._nft = None

    def reserve_number(self) -> int:
        """Reserve a number for a slot. Raises NetworkError when all are in use."""
        with state.host_lock():
            return reserve_number(self._owner, self._layout.max_slots)

    def create_slot(self) -> KernelSlot:
        """Create a slot. Raises NetworkError, OSError; clean-up that fails is retried later."""
        check_descriptors(_SLOT_DESCRIPTORS)
        self._remove_failed()
        number = self.reserve_number()
        try:
            return KernelSlot.create(self._owner, number, self._layout, self._add_to_table, self._remove_from_table)
        except BaseException:
            self._failed_numbers.append(number)
            self._remove_failed()
            raise

    def _remove_failed(self) -> None:
        """Remove the remains of slots that could not be created; their numbers stay reserved until then."""
        for _ in range(len(self._failed_numbers)):
            try:
                number = self._failed_numbers.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                self._remove_from_table(number)
                remove_slot(NAMESPACES / namespace_name(self._owner, number), number)
            except (OSError, NetworkError) as error:
                log.warning("slot_cleanup_failed", number=number, error=str(error))
                self._failed_numbers.append(number)

    def _add_to_table(self, number: int) -> None:
        """Apply the table's rules to packets of slot `number` and let them in."""
        self._run(f'add element inet {self._table} slots {{ "{host_interface(number)}" }}')

    def _remove_from_table(self, number: int) -> None:
        """Remove slot `number` from the table."""
        element = f'element inet {self._table} slots {{ "{host_interface(number)}" }}'
        self._run(f"add {element}\ndelete {element}")  # succeeds whether the element exists or not

    def _run(self, command: str) -> None:
        if self._nft is None:
            raise NetworkError("networking is not set up on this host")
        self._nft.run(command)
