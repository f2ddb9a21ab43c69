"""The protocols that the slot pool uses: a backend, which creates slots, and a slot.

kernel_backend.py implements it on the host for root, rootless.py in namespaces of a user who is not root. All methods
block for milliseconds.
"""

from __future__ import annotations

from typing import Protocol

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.policy import Policy
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Traffic


class Slot(Protocol):
    """One slot; slot.KernelSlot documents its methods."""

    @property
    def number(self) -> int: ...

    @property
    def dns_sockets(self) -> DnsSockets: ...

    def apply_policy(self, policy: Policy, mbit: float | None = None) -> None: ...

    def allow(self, commands: list[str]) -> None: ...

    def read_traffic(self) -> Traffic: ...

    def network_slot(self) -> NetworkSlot: ...

    def remove(self) -> None: ...


class NetworkBackend(Protocol):
    """Creates slots; kernel_backend.KernelBackend documents its methods."""

    @property
    def alive(self) -> bool: ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def create_slot(self) -> Slot: ...
