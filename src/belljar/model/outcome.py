"""How a job ended, as its last attempt found it: what is written once, together with the terminal status."""

from __future__ import annotations

from datetime import UTC, datetime

from belljar.model.job import Artifact, JobError, LogInfo, MachineInfo, NetworkUse, Timings, Usage, Value
from belljar.model.states import Status


class Outcome(Value):
    status: Status
    exit_code: int | None = None
    signal: str | None = None
    error: JobError | None = None
    timings: Timings = Timings()
    usage: Usage = Usage()
    network: NetworkUse = NetworkUse()
    logs: LogInfo = LogInfo()
    kept_artifacts: tuple[Artifact, ...] = ()
    #: When the script began, if it did.
    started_at: datetime | None = None
    finished_at: datetime
    machine: MachineInfo | None = None

    @classmethod
    def failed(cls, error: JobError) -> Outcome:
        """The end of a job that could not be run at all."""
        return cls(status=Status.FAILED, error=error, finished_at=datetime.now(UTC))
