"""The sandbox as a value: a machine that stays for its user, from its creation to its end."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from belljar.model.job import MachineInfo, NetworkUse, Resources, Timings
from belljar.model.sandbox_values import GuestUser
from belljar.model.secrets import SecretUse
from belljar.model.value import Value

_MIB = 1024 * 1024


class SandboxStatus(StrEnum):
    """The status of a sandbox."""

    #: It waits for a node with free resources, or its machine is being started.
    CREATING = "creating"
    #: Its machine runs, and takes commands.
    RUNNING = "running"
    #: Its machine is being frozen.
    PAUSING = "pausing"
    #: Its memory and disk are kept, and no machine runs.
    PAUSED = "paused"
    #: It waits for a node, or its machine is being started from what was kept.
    RESUMING = "resuming"
    #: It has ended; `end.reason` says why.
    ENDED = "ended"
    #: Infrastructure lost its machine, and with it what was in memory and on its disk.
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        """Return whether the sandbox has ended."""
        return self in TERMINAL

    @property
    def holds_machine(self) -> bool:
        """Return whether a node has, or is about to have, a machine of it."""
        return self in HOLDS_MACHINE


TERMINAL = frozenset({SandboxStatus.ENDED, SandboxStatus.LOST})
#: A sandbox in one of these is under a lease once a node has claimed it (`fence` > 0 and `node` set).
HOLDS_MACHINE = frozenset(
    {SandboxStatus.CREATING, SandboxStatus.RUNNING, SandboxStatus.PAUSING, SandboxStatus.RESUMING}
)

TRANSITIONS: dict[SandboxStatus, frozenset[SandboxStatus]] = {
    SandboxStatus.CREATING: TERMINAL | {SandboxStatus.RUNNING},
    SandboxStatus.RUNNING: TERMINAL | {SandboxStatus.PAUSING},
    # Back to RUNNING when the machine could not be frozen and runs on.
    SandboxStatus.PAUSING: TERMINAL | {SandboxStatus.PAUSED, SandboxStatus.RUNNING},
    SandboxStatus.PAUSED: TERMINAL | {SandboxStatus.RESUMING},
    # Back to PAUSED when no node had room, or the node died before its machine ran: what was kept is whole.
    SandboxStatus.RESUMING: TERMINAL | {SandboxStatus.RUNNING, SandboxStatus.PAUSED},
    **{status: frozenset[SandboxStatus]() for status in TERMINAL},
}


def may_become(status: SandboxStatus) -> frozenset[SandboxStatus]:
    """Return the states from which `status` may be entered, for the WHERE clause of a guarded UPDATE."""
    return frozenset(origin for origin, targets in TRANSITIONS.items() if status in targets)


class EndReason(StrEnum):
    """Why a sandbox ended."""

    #: A caller deleted it.
    DELETED = "deleted"
    #: Its lifetime is over.
    LIFETIME = "lifetime"
    #: Nobody used it for `idle_seconds`.
    IDLE = "idle"
    #: Its project was removed.
    PROJECT = "project"
    #: No node had room for it in time.
    NO_ROOM = "no_room"
    #: Its machine could not be started.
    START_FAILED = "start_failed"
    #: Its machine died: its kernel panicked, its hypervisor failed, or something in it ended it.
    MACHINE_DIED = "machine_died"
    #: An alert rule of the operator ended it.
    FLOW_ALERT = "flow_alert"
    #: Its node's worker was stopped.
    WORKER_STOPPED = "worker_stopped"
    #: Its node died, or sent nothing until the lease ran out.
    NODE_LOST = "node_lost"
    #: The kept memory or disk of a paused sandbox is damaged.
    SNAPSHOT_DAMAGED = "snapshot_damaged"
    #: It was paused for longer than paused sandboxes are kept.
    RETENTION = "retention"


#: What ends a sandbox as `lost`; every other reason ends it as `ended`.
LOSSES = frozenset({EndReason.MACHINE_DIED, EndReason.WORKER_STOPPED, EndReason.NODE_LOST, EndReason.SNAPSHOT_DAMAGED})


class SandboxEnd(Value):
    """Why a sandbox ended: the reason for programs, a sentence for people, and what its network did."""

    reason: EndReason
    message: str
    network: NetworkUse = NetworkUse()

    @property
    def status(self) -> SandboxStatus:
        """The status that a sandbox which ends so gets."""
        return SandboxStatus.LOST if self.reason in LOSSES else SandboxStatus.ENDED


class FrozenState(Value):
    """A frozen machine, kept on a node's disk."""

    id: str
    node: str
    stored_bytes: int
    """Bytes of its memory and disks that are not zeros. What it shares with an earlier one is stored once."""


class ResumeProblem(Value):
    """Why a sandbox could not be resumed: a stable code (docs/errors.md) and a sentence."""

    code: str
    message: str


class SandboxSpec(Value):
    """What a sandbox was created with, defaults included."""

    image: str
    image_digest: str | None = None
    """Digest of the image at creation: a name that later points to another image changes no sandbox."""
    template: str | None = None
    resources: Resources
    egress: str | tuple[str, ...] = "none"
    env: dict[str, str] = Field(default_factory=dict)
    """Variables of every command, besides the image's."""
    secrets: tuple[SecretUse, ...] = ()
    """The secrets that it gets, by name; never their values."""
    mask_secrets: bool = True
    """Whether its secrets are replaced by `***` in the output of commands."""
    lifetime_seconds: float
    """Seconds from its creation to its end, unless it is extended. Paused time does not count."""
    idle_seconds: float | None = None
    """Seconds without a call and without a foreground command after which it ends; None: never."""
    user: GuestUser | None = None
    """Who its commands run as, and whom its working folder belongs to; None: the image's user. Only a sandbox of root
    runs commands as other users, too."""
    public_ports: tuple[int, ...] = ()
    """Ports that anyone may reach by their host names, without a token."""
    labels: dict[str, str] = Field(default_factory=dict)


class Sandbox(Value):
    """A sandbox, as callers see it."""

    id: str
    project: str
    status: SandboxStatus
    end: SandboxEnd | None = None
    """Why it ended; None before."""
    created_at: datetime
    started_at: datetime | None = None
    """When its machine first took commands."""
    expires_at: datetime
    """When its lifetime is over; a paused sandbox's is moved on by the time that it was paused."""
    paused_at: datetime | None = None
    paused_seconds: float = 0
    """How long it was paused before it was last resumed; this counts for no limit."""
    ended_at: datetime | None = None
    node: str | None = None
    """The node that has its machine or its lease."""
    fence: int = 0
    """How many times it was claimed by a node: the number that every later call must carry."""
    end_requested: EndReason | None = None
    """Why its node is to end it; set before it has ended."""
    machine: MachineInfo | None = None
    timings: Timings = Timings()
    """`queue_ms`: creation to claim; `machine_ms`: claim to the first command's chance."""
    secret_versions: dict[str, int] = Field(default_factory=dict)
    parent: str | None = None
    """The sandbox or snapshot that it was forked from."""
    frozen: FrozenState | None = None
    """What it was last frozen into, or is made from; None: it began with its image."""
    problem: ResumeProblem | None = None
    """Why it could not be resumed when that was last tried."""
    idempotency_key: str | None = None
    request_sha256: str | None = None
    spec: SandboxSpec

    @property
    def needed(self) -> Resources:
        """What its machine takes of a node: a copy also has the memory that it was made with, while it runs."""
        resources = self.spec.resources
        if self.frozen is None or self.status is not SandboxStatus.CREATING:
            return resources
        loaded_mb = min(resources.memory_mb, -(-self.frozen.stored_bytes // _MIB))
        return resources.model_copy(update={"memory_mb": resources.memory_mb + loaded_mb})

    def public(self) -> dict[str, Any]:
        """Return the sandbox as the HTTP API and `--json` print it: the spec flattened to the names of the options."""
        shown = self.model_dump(mode="json", exclude={"spec", "request_sha256", "end_requested"})
        spec = self.spec.model_dump(mode="json", exclude={"resources"})
        return shown | spec | self.spec.resources.model_dump()
