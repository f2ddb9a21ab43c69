"""The states of a job and the one table of legal transitions.

The store checks each change of status against the table in the statement that writes it, so that two writers cannot
both end a job.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The status of a job."""

    #: Waits for a worker with free resources.
    QUEUED = "queued"
    #: A worker has leased the job and prepares its machine; the script has not started.
    STARTING = "starting"
    #: The script runs.
    RUNNING = "running"
    #: The script exited with 0.
    SUCCEEDED = "succeeded"
    #: The script exited with another code, by a signal or over a limit, or could not be run.
    FAILED = "failed"
    #: The script was stopped at its timeout.
    TIMED_OUT = "timed_out"
    #: The job was cancelled before it ended.
    CANCELLED = "cancelled"
    #: Infrastructure failed in all of its `max_attempts` attempts.
    LOST = "lost"

    @property
    def terminal(self) -> bool:
        """Return whether the job has ended."""
        return self in TERMINAL


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.TIMED_OUT, Status.CANCELLED, Status.LOST})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    # FAILED directly from QUEUED: the image or the script was deleted.
    Status.QUEUED: frozenset({Status.STARTING, Status.CANCELLED, Status.FAILED}),
    # Terminal directly from STARTING: a compile error, or the script ended before its start was written.
    Status.STARTING: TERMINAL | {Status.RUNNING, Status.QUEUED},
    # Back to QUEUED only when infrastructure lost the attempt and another one is allowed.
    Status.RUNNING: TERMINAL | {Status.QUEUED},
    **{status: frozenset[Status]() for status in TERMINAL},
}


def may_become(status: Status) -> frozenset[Status]:
    """Return the states from which `status` may be entered, for the WHERE clause of a guarded UPDATE."""
    return frozenset(origin for origin, targets in TRANSITIONS.items() if status in targets)
