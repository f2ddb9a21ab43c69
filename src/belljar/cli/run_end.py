"""The end of `belljar run`: its messages about the job and its exit code."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from belljar.cli.failure import CANNOT_RUN, INTERRUPTED, OUTPUT_CLOSED
from belljar.cli.printing import print_json, print_message, print_stderr, printable

if TYPE_CHECKING:
    from belljar.node.worker.artifact_folder import NotKept

TIMED_OUT = 124
_MAX_NAMED = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEnd:
    """An ended job, and what happened to its output and artifacts."""

    job: dict[str, Any]
    #: Artifacts that were not saved; None when none were requested.
    not_kept: list[NotKept] | None = None
    #: The signal that ended the command.
    stopped: int | None = None
    #: Whether the reader of the output has gone.
    output_closed: bool = False


def report(end: RunEnd, *, as_json: bool, verbose: bool) -> int:
    """Print how the job ended and return the exit code."""
    job = end.job
    if as_json:
        lost = [{"path": each.path, "reason": each.reason} for each in end.not_kept or ()]
        print_json(job if end.not_kept is None else {**job, "artifacts_not_kept": lost})
    if job["error"]:
        print_message(job["error"]["message"])
    elif end.output_closed:
        pass  # nobody reads a message either
    elif job["status"] == "cancelled":
        print_message("cancelled")
    elif job["signal"]:
        print_message(f"the script was ended by {job['signal']}")
    for each in (end.not_kept or ())[:_MAX_NAMED]:
        print_message(f"the artifact {each.path[-300:]} was not saved: {each.reason}")
    if end.not_kept is not None and len(end.not_kept) > _MAX_NAMED:
        print_message(f"{len(end.not_kept) - _MAX_NAMED} more artifacts were not saved; --json lists them")
    if verbose:
        for name, milliseconds in job["timings"]["phases"].items():
            print_stderr(printable(f"{name:10} {milliseconds:9.1f} ms"))
    return _exit_code(end)


def _exit_code(end: RunEnd) -> int:
    job = end.job
    if end.output_closed:
        return OUTPUT_CLOSED
    if job["status"] == "timed_out":
        return TIMED_OUT
    if job["status"] == "cancelled":
        return INTERRUPTED if end.stopped is None else 128 + end.stopped
    if job["exit_code"] is not None:
        code = int(job["exit_code"])
        incomplete = end.not_kept or (job["error"] or {}).get("code") == "artifacts_incomplete"
        # A number from the server that is no exit code must not become 0.
        return CANNOT_RUN if not 0 <= code <= 255 or (code == 0 and incomplete) else code
    if job["signal"]:
        with contextlib.suppress(ValueError, KeyError):
            return 128 + signal.Signals[job["signal"]].value
        return 128
    return CANNOT_RUN
