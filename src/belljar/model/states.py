"""The states of a job and the one table of legal transitions.

Every change of a job's status, wherever it is written, is one of these; the store refuses any other in the same
statement that writes it, so that two writers cannot both end a job.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    #: Waiting for a worker that has room.
    QUEUED = "queued"
    #: A worker holds it and is making its machine ready; the script has not begun.
    STARTING = "starting"
    #: The script's entrypoint is running.
    RUNNING = "running"
    #: The script ended with exit code 0.
    SUCCEEDED = "succeeded"
    #: The script ended with another exit code, by a signal, or went over a limit; or belljar could not run it at all.
    FAILED = "failed"
    #: The script was stopped because its time was up.
    TIMED_OUT = "timed_out"
    #: Someone cancelled the job before it ended.
    CANCELLED = "cancelled"
    #: Infrastructure failed under it more often than `max_attempts` allows.
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED, Status.LOST})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    # FAILED straight from QUEUED: the image or the script was deleted meanwhile.
    Status.QUEUED: frozenset({Status.STARTING, Status.CANCELLED, Status.FAILED}),
    # Straight from STARTING: a compiler found errors, or the script was over before its beginning was written.
    Status.STARTING: TERMINAL | {Status.RUNNING, Status.QUEUED},
    # Back to QUEUED only when infrastructure lost the attempt and another one is allowed.
    Status.RUNNING: TERMINAL | {Status.QUEUED},
    **{status: frozenset[Status]() for status in TERMINAL},
}


def may_become(status: Status) -> frozenset[Status]:
    """The states from which `status` may be entered: what a guarded UPDATE puts into its WHERE clause."""
    return frozenset(origin for origin, targets in TRANSITIONS.items() if status in targets)
