"""The outcome of a job's last attempt: written once, together with the terminal status."""

from __future__ import annotations

from datetime import UTC, datetime

from belljar.model.job import Artifact, JobError, LogInfo, MachineInfo, NetworkUse, Timings, Usage
from belljar.model.states import Status
from belljar.model.value import Value


class Outcome(Value):
    """The terminal status and the results."""

    status: Status
    exit_code: int | None = None
    signal: str | None = None
    error: JobError | None = None
    timings: Timings = Timings()
    usage: Usage = Usage()
    network: NetworkUse = NetworkUse()
    logs: LogInfo = LogInfo()
    kept_artifacts: tuple[Artifact, ...] = ()
    #: None when the script did not start.
    started_at: datetime | None = None
    finished_at: datetime
    machine: MachineInfo | None = None

    @classmethod
    def failed(cls, error: JobError) -> Outcome:
        """Return the outcome of a job that could not be run."""
        return cls(status=Status.FAILED, error=error, finished_at=datetime.now(UTC))
