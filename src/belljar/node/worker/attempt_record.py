"""Keeps what a job's record shows of an attempt: its machine, when it started, how long each step took."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from belljar.model.job import Artifact, Job, LogInfo, MachineInfo, Timings
from belljar.node.machines.protocol import Hypervisor
from belljar.node.machines.provision.request import Source
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.job_network import network_use
from belljar.node.worker.observer import AttemptObserver
from belljar.node.worker.outcome import error_of, signal_name, status_of, usage_of


class AttemptRecord(AttemptObserver):
    """An observer that keeps what a job's outcome is made from."""

    def __init__(self) -> None:
        self.hypervisor: Hypervisor | None = None
        self.machine: MachineInfo | None = None
        self.started_at: datetime | None = None
        #: Milliseconds of each step before there was a machine.
        self.phases: dict[str, float] = {}

    def on_hypervisor(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor

    def on_phase(self, name: str, milliseconds: float) -> None:
        self.phases[name] = round(milliseconds, 3)

    def on_machine(self, source: Source) -> None:
        assert self.hypervisor is not None
        self.machine = MachineInfo(
            source=source, hypervisor=self.hypervisor.name, accelerator=self.hypervisor.accelerator
        )

    def on_started(self) -> None:
        self.started_at = datetime.now(UTC)

    def timings_of(self, job: Job, claimed_at: datetime, end: AttemptEnd | None = None) -> Timings:
        """Return how long the job waited, came up and ran, as far as that is known."""
        started_at = self.started_at
        return Timings(
            queue_ms=_milliseconds(job.created_at, claimed_at),
            machine_ms=_milliseconds(claimed_at, started_at) if started_at else None,
            run_ms=end.phases.get("run") if end and started_at else None,
            phases=self.phases | (end.phases if end else {}),
        )

    def outcome_fields(
        self, job: Job, end: AttemptEnd, *, claimed_at: datetime, logs: LogInfo, kept: Iterable[Artifact]
    ) -> dict[str, Any]:
        """Return the fields of the outcome, and of the job, when its script has ended."""
        exited = end.exited
        return {
            "status": status_of(end),
            "exit_code": exited.exit_code if exited else None,
            "signal": signal_name(exited.signal) if exited else None,
            "error": error_of(end, job),
            "timings": self.timings_of(job, claimed_at, end),
            "usage": usage_of(end),
            "network": network_use(end.traffic, end.flows),
            "started_at": self.started_at,
            "logs": logs,
            "kept_artifacts": tuple(kept),
            "finished_at": datetime.now(UTC),
            "machine": self.machine,
        }


def _milliseconds(start: datetime, stop: datetime) -> float:
    return round((stop - start).total_seconds() * 1000, 3)
