"""What slots stand on, seen from the pool: a host's side that makes them, and the slots themselves.

The host itself where belljar is root, a stand-in for it where it is not. All methods block for milliseconds.
"""

from __future__ import annotations

from typing import Protocol

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.policy import Policy
from belljar.node.network.slot import DnsSockets
from belljar.node.network.traffic import Traffic


class AnySlot(Protocol):
    """One slot. What its methods do: slot.Slot."""

    @property
    def number(self) -> int: ...

    @property
    def ears(self) -> DnsSockets: ...

    def open_for(self, policy: Policy, mbit: float | None = None) -> None: ...

    def admit(self, commands: list[str]) -> None: ...

    def traffic(self) -> Traffic: ...

    def described(self) -> NetworkSlot: ...

    def remove(self) -> None: ...


class Host(Protocol):
    """What makes slots. What its methods do: host.HostSide."""

    @property
    def alive(self) -> bool: ...

    def open(self) -> None: ...

    def close(self) -> None: ...

    def make_slot(self) -> AnySlot: ...
