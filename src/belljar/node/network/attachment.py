"""A machine's network as its worker sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network.flows.watch import FlowWatch
from belljar.node.network.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Attachment:
    """One machine's network: its slot, and its traffic."""

    slot: NetworkSlot
    #: Read the traffic and the refusals so far; None when they cannot be read.
    traffic: Callable[[], Awaitable[Traffic | None]]
    #: The watch over its flows; None when they are not counted.
    flows: FlowWatch | None = None
