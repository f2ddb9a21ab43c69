"""What a worker holds while a machine has a network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Attachment:
    """One machine's network: where it is plugged in, and how to learn what has gone through."""

    slot: NetworkSlot
    #: What went through so far and what did not; None when it cannot be read.
    traffic: Callable[[], Awaitable[Traffic | None]]
