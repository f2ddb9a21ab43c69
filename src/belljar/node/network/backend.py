"""The protocols that the slot pool uses: a backend, which creates slots, and a slot.

kernel_backend.py implements it on the host for root, rootless.py in namespaces of a user who is not root. All methods
block for milliseconds.
"""

from __future__ import annotations

from typing import Protocol

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.flows.reading import FlowReading
from belljar.node.network.policy import Policy
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Traffic


class Slot(Protocol):
    """One slot of one machine. Methods that change or read it raise NetworkError."""

    @property
    def number(self) -> int: ...

    @property
    def dns_sockets(self) -> DnsSockets: ...

    def apply_policy(self, policy: Policy, mbit: float | None = None) -> None:
        """Apply a policy, and limit the slot to `mbit` megabits a second each way; once."""
        ...

    def allow(self, commands: list[str]) -> None:
        """Run the commands of `rules.allow_addresses`."""
        ...

    def read_traffic(self) -> Traffic:
        """Return the traffic and refusals so far."""
        ...

    def read_flows(self) -> FlowReading:
        """Return the flows so far, and what came since the last call. One caller at a time."""
        ...

    def network_slot(self) -> NetworkSlot:
        """Return the slot as its machine needs it."""
        ...

    def remove(self) -> None:
        """Remove the slot. Idempotent."""
        ...


class NetworkBackend(Protocol):
    """The creator of slots. Its methods raise NetworkError."""

    @property
    def alive(self) -> bool:
        """Return whether slots can be created."""
        ...

    def open(self) -> None:
        """Get ready to create slots."""
        ...

    def close(self) -> None:
        """Undo `open`. Idempotent."""
        ...

    def create_slot(self) -> Slot:
        """Create a slot that lets nothing through."""
        ...
