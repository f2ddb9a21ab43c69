"""The interface between a node and the control plane. A node does everything through it, and knows nothing behind it.

Every call about an attempt carries its lease (job, attempt, node, incarnation). The control plane writes nothing for a
lease that is not held: such a call raises LeaseLost, and the node ends the attempt's machine. Any call may raise
HostError; the node decides whether it tries again. Any verb may be called again after a failure whose effect is not
known: a second call has no further effect, or raises LeaseLost because the first one gave the lease up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from belljar.link.leases import Assignment, ClaimRequest, LeaseKey, NodeIdentity, Renewal, StartReport
from belljar.link.nodes import NodeReport
from belljar.link.output import OutputOffsets, OutputPiece
from belljar.link.secrets import JobSecret
from belljar.model.flows import FlowReport
from belljar.model.image import Manifest
from belljar.model.outcome import Outcome
from belljar.model.states import Status
from belljar.model.usage_series import UsageSeries


class ControlLink(Protocol):
    """What the control plane does for a node. Every implementation passes the tests in tests/link."""

    async def register(self, node: NodeIdentity) -> tuple[LeaseKey, ...]:
        """Begin to work as this process, and return the leases that earlier processes of the node left.

        They belong to this process from now on, and to no earlier one. To be called before the first claim.
        """
        ...

    async def heartbeat(self, node: NodeIdentity, report: NodeReport) -> None:
        """Keep the report as the node's newest: it is alive now."""
        ...

    async def images(self) -> tuple[Manifest, ...]:
        """Return the manifests of the images that the control plane has."""
        ...

    async def image_part(self, sha256: str, target: Path) -> None:
        """Write one part of those images to a new local file, whole or not at all. Raises NotFound, DiskFull."""
        ...

    async def claim(self, node: NodeIdentity, request: ClaimRequest, wait_seconds: float) -> Assignment | None:
        """Give the node the next job that it has room for: by priority, then by age. None when none came in that time.

        Cancelling the call loses no job: one that was claimed meanwhile is queued again without an attempt.
        """
        ...

    async def renew(self, node: NodeIdentity, leases: Collection[LeaseKey]) -> Renewal:
        """Hold these leases for longer; the answer says which are lost, and which jobs are to be stopped."""
        ...

    async def wait_for_cancellation(self, node: NodeIdentity, wait_seconds: float) -> frozenset[LeaseKey]:
        """Wait until a job may have been cancelled, at most so long; return all leases whose jobs are to be stopped."""
        ...

    async def script_disk(self, lease: LeaseKey) -> Path:
        """Return the packed filesystem image of the job's script: a local file, to be read only. Raises NotFound."""
        ...

    async def stdin(self, lease: LeaseKey) -> bytes:
        """Return the job's standard input. Raises NotFound."""
        ...

    async def secrets(self, lease: LeaseKey) -> tuple[JobSecret, ...]:
        """Return the secrets that the job names, each once, and note their versions in the job.

        Raises SecretMissing when one was removed, InvalidOption, SecretsKeyError.
        """
        ...

    async def started(self, lease: LeaseKey, report: StartReport) -> None:
        """Keep that the script runs."""
        ...

    async def append_output(self, lease: LeaseKey, pieces: Sequence[OutputPiece]) -> OutputOffsets:
        """Keep output in this order; return how far each stream is kept. Readers see what is acknowledged.

        Bytes that are kept already are skipped. Without pieces it opens the log and returns the offsets to begin at.
        Raises OutputGap when bytes before a piece are missing, OutputRefused when no more can be kept.
        """
        ...

    async def put_usage(self, lease: LeaseKey, series: UsageSeries) -> None:
        """Keep what the attempt's machine has used so far, instead of what was kept before."""
        ...

    async def put_artifact(self, lease: LeaseKey, number: int, file: Path) -> None:
        """Keep a copy of a local file as the job's artifact of that number, whole or not at all. Raises DiskFull."""
        ...

    async def report_flows(self, lease: LeaseKey, report: FlowReport) -> None:
        """Keep the report as what the job's machine talked to so far; it replaces the one before. Raises TooLarge."""
        ...

    async def finish(self, lease: LeaseKey, outcome: Outcome) -> None:
        """End the job. Calling it again for a job that this lease has ended has no effect."""
        ...

    async def decline(self, lease: LeaseKey) -> None:
        """Give back a job for which nothing was done: it is queued again, and the attempt does not count."""
        ...

    async def requeue(self, lease: LeaseKey, *, code: str, reason: str) -> Status:
        """Give up the attempt, which infrastructure lost: queue the job again, or end it after its last attempt.

        Returns the job's status. `code` and `reason` are kept with the lost attempt.
        """
        ...
