"""Leases: which process of which node may work on which attempt, and what it is given with that."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from belljar.model.job import Job, MachineInfo, Timings
from belljar.model.resources import NodeLimits


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """One process of one node's worker: the node's name, and a word that is new with each start of the process."""

    name: str
    incarnation: str

    @classmethod
    def new(cls, name: str) -> NodeIdentity:
        """Return the identity of a process that starts now."""
        return cls(name, secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class LeaseKey:
    """The right of one process to one attempt. The attempt's number is the fence that every write carries."""

    job_id: str
    attempt: int
    node: NodeIdentity

    def __str__(self) -> str:
        return f"{self.job_id}.{self.attempt}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """What a node has room for now."""

    vcpus: int
    memory_mb: int
    #: The largest scratch disk that fits now; None: any.
    disk_mb: int | None = None
    #: The largest job that could ever run on the node; larger ones are passed over. None: what is free now.
    largest: NodeLimits | None = None
    #: Digests of the images that the node has; None: it has all.
    images: frozenset[str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A job that a node was given, and for how long unless it renews the lease."""

    lease: LeaseKey
    job: Job
    lease_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """The answer to a renewal: leases in neither set are renewed."""

    #: The node holds these no more: nothing that it writes about them counts.
    lost: frozenset[LeaseKey] = frozenset()
    #: The jobs of these are to be stopped.
    cancelled: frozenset[LeaseKey] = frozenset()
    #: How long the renewed ones last from the moment of the request.
    lease_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StartReport:
    """The script's entrypoint runs."""

    started_at: datetime
    machine: MachineInfo
    timings: Timings
