"""How an attempt's script ended: the value that a job's outcome is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from belljar.model.errors import BelljarError
from belljar.model.flows import FlowAlert, FlowReport
from belljar.node.guest import wire
from belljar.node.guest.command import CommandFailed
from belljar.node.network.traffic import Traffic


class Stop(StrEnum):
    """Why a script was stopped from outside."""

    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    ALERT = "alert"


@dataclass(slots=True)
class AttemptEnd:
    """How a script ended: `exited`, or `not_started`, or neither when it was killed together with its machine."""

    stop: Stop | None = None
    exited: wire.Exited | None = None
    not_started: CommandFailed | None = None
    #: Whether it was the compiler that ended so, and the script was never begun.
    in_compile: bool = False
    #: How many artifacts were fetched and skipped; None when the job keeps none.
    collected: wire.Collected | None = None
    #: Why the artifacts are not complete.
    collect_error: BelljarError | None = None
    #: The traffic of its network; None without a network, or when it could not be read.
    traffic: Traffic | None = None
    #: What its machine talked to; None without a network, or when it could not be read.
    flows: FlowReport | None = None
    #: The alert that stopped it, where `stop` is ALERT.
    alert: FlowAlert | None = None
    #: Milliseconds of each step, in order.
    phases: dict[str, float] = field(default_factory=dict)
    #: Whether the script has ended, and nothing that follows changes how.
    is_over: bool = False
