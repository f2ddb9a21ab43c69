"""Jobs to store, and a worker with free resources for all of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from belljar.control.store.claims import SqlClaims
from belljar.model.ids import new_id
from belljar.model.job import Job, MachineInfo, Resources, Timings
from belljar.model.outcome import Outcome
from belljar.model.script import Script
from belljar.model.states import Status

MACHINE = MachineInfo(source="boot", hypervisor="qemu", accelerator="tcg")


def queued(*, vcpus: int = 1, memory_mb: int = 256, **fields: Any) -> Job:
    """Return a new job that is not stored."""
    standard: dict[str, Any] = {
        "id": new_id("job"),
        "project": "mine",
        "script_id": "a" * 64,
        "status": Status.QUEUED,
        "created_at": datetime.now(UTC),
        "language": "python",
        "entrypoint": "main.py",
        "image": "python",
        "resources": Resources(vcpus=vcpus, memory_mb=memory_mb),
        "timeout_seconds": 60,
    }
    return Job(**{**standard, **fields})


def uploaded(script_id: str = "a" * 64, project: str = "mine", **fields: Any) -> Script:
    """Return the record of a script that is not stored."""
    standard: dict[str, Any] = {
        "name": "main.py",
        "language": "python",
        "entrypoint": "main.py",
        "size_bytes": 1,
        "file_count": 1,
        "created_at": datetime.now(UTC),
    }
    return Script(id=script_id, project=project, **{**standard, **fields})


async def take(claims: SqlClaims, worker: str = "w1", lease_seconds: float = 30) -> Job | None:
    """Claim the next job of any size."""
    return await claims.claim(worker, vcpus=64, memory_mb=1 << 20, lease_seconds=lease_seconds)


async def begin(claims: SqlClaims, job: Job, worker: str = "w1") -> bool:
    """Record that the job's script runs."""
    return await claims.running(worker, job, started_at=datetime.now(UTC), machine=MACHINE, timings=Timings())


async def lose_all(claims: SqlClaims, worker: str = "w1") -> list[Job]:
    """Lose all attempts of a worker, as it does itself when it starts again after it was killed."""
    lost = [
        await claims.requeue(worker, job, reason="the worker was killed", code="worker_died")
        for job in await claims.adopt(worker, "", 30)
    ]
    return [job for job in lost if job is not None]


def ended(status: Status = Status.SUCCEEDED, **fields: Any) -> Outcome:
    return Outcome(status=status, finished_at=datetime.now(UTC), **fields)
