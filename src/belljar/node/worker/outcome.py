"""From the end of an attempt to the job's record: status, signal, usage, and an error that says what to do."""

from __future__ import annotations

import signal as signals

from belljar.model.job import Job, JobError, Usage
from belljar.model.states import Status
from belljar.node.worker.attempt_end import AttemptEnd, Stop


def status_of(end: AttemptEnd) -> Status:
    """Return the terminal status of a job whose script has ended."""
    if end.stop is Stop.CANCELLED:
        return Status.CANCELLED
    if end.stop is Stop.TIMED_OUT:
        return Status.TIMED_OUT
    if end.exited is not None and end.exited.exit_code == 0:
        return Status.SUCCEEDED
    return Status.FAILED


def signal_name(number: int | None) -> str | None:
    """Return the name of a signal: SIGKILL for 9, SIG42 for a number without a name."""
    if number is None:
        return None
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def error_of(end: AttemptEnd, job: Job) -> JobError | None:
    """Return why the job did not succeed; None when its exit code or signal explains it."""
    if end.stop is Stop.TIMED_OUT and end.in_compile:
        message = f"the compiler exceeded the time limit of {job.timeout_seconds:g} s; raise timeout_seconds"
        return JobError(code="timed_out", message=message)
    if end.stop is Stop.TIMED_OUT:
        message = f"the script exceeded the time limit of {job.timeout_seconds:g} s; raise timeout_seconds"
        return JobError(code="timed_out", message=message)
    if end.stop is Stop.ALERT and end.alert is not None:
        return JobError(code="flow_alert", message=f"an alert rule stopped the job: it {end.alert.message}")
    if end.not_started is not None:
        what = "compiler" if end.in_compile else "entrypoint"
        message = f"the {what} could not be executed in the image {job.image}: {end.not_started}"
        return JobError(code="cannot_execute", message=message)
    if end.exited is not None and end.exited.exit_code != 0 and end.exited.oom_kills:
        message = f"out of memory: the machine has {job.resources.memory_mb} MB; raise memory_mb"
        return JobError(code="out_of_memory", message=message)
    if end.in_compile and end.stop is None:
        return JobError(code="compile_error", message="the script could not be compiled; see its stderr")
    if end.collect_error is not None:
        return JobError(code="artifacts_incomplete", message=end.collect_error.message)
    if end.collected is not None and end.collected.skipped:
        message = (
            f"{end.collected.skipped} files or folders were skipped as artifacts: over a limit, unreadable, more than "
            "128 folders deep, or with a name that is not UTF-8"
        )
        return JobError(code="artifacts_incomplete", message=message)
    return None


def usage_of(end: AttemptEnd) -> Usage:
    """Return the job's usage: processor and memory as counted by its guest, network bytes as counted by the host."""
    received, sent = (end.traffic.rx_bytes, end.traffic.tx_bytes) if end.traffic is not None else (0, 0)
    if end.exited is None:
        return Usage(rx_bytes=received, tx_bytes=sent)
    return Usage(
        cpu_seconds=round(end.exited.cpu_us / 1e6, 6),
        max_memory_mb=round(end.exited.max_memory_bytes / (1024 * 1024), 3),
        rx_bytes=received,
        tx_bytes=sent,
    )
