"""Sandboxes as values, and the shortest calls of a node about them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from belljar.link.leases import ClaimRequest, NodeIdentity
from belljar.link.sandboxes import SandboxAssignment, SandboxLease, SandboxLink, SandboxStart
from belljar.model.ids import new_id
from belljar.model.job import Resources, Timings
from belljar.model.sandbox import EndReason, Sandbox, SandboxEnd, SandboxSpec, SandboxStatus
from support.job_queue import MACHINE

ROOM = ClaimRequest(vcpus=8, memory_mb=8192)


def new_sandbox(
    *,
    project: str = "mine",
    vcpus: int = 1,
    memory_mb: int = 128,
    lifetime_seconds: float = 600,
    idempotency_key: str | None = None,
    **spec: Any,
) -> Sandbox:
    """Return a sandbox that nobody has stored."""
    now = datetime.now(UTC)
    standard: dict[str, Any] = {
        "image": "harness",
        "resources": Resources(vcpus=vcpus, memory_mb=memory_mb),
        "lifetime_seconds": lifetime_seconds,
    }
    return Sandbox(
        id=new_id("sb"),
        project=project,
        status=SandboxStatus.CREATING,
        created_at=now,
        expires_at=now + timedelta(seconds=lifetime_seconds),
        idempotency_key=idempotency_key,
        spec=SandboxSpec(**{**standard, **spec}),
    )


async def claim_sandbox(link: SandboxLink, node: NodeIdentity) -> SandboxAssignment:
    """Claim the next sandbox, which is there."""
    assignment = await link.claim_sandbox(node, ROOM, 0)
    assert assignment is not None
    return assignment


async def run_sandbox(link: SandboxLink, lease: SandboxLease, machine: Any = None) -> None:
    """Report that the machine of a sandbox takes commands."""
    start = SandboxStart(started_at=datetime.now(UTC), machine=MACHINE, timings=Timings(machine_ms=1.0))
    await link.sandbox_running(lease, start, machine)


def end_by(reason: EndReason) -> SandboxEnd:
    return SandboxEnd(reason=reason, message=f"a test ended it: {reason}")
