"""The trace of an attempt: a span from its claim to its end, and below it one for each phase; the run is `script`.

The spans are recorded when the attempt is over, from the times that its job's record has.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from belljar.model.job import Job
from belljar.model.outcome import Outcome
from belljar.system import tracing

#: Phases that follow the script's start; all others lead to it.
_AFTER_START = frozenset({"run", "collect"})


def trace_attempt(job: Job, claimed_at: datetime, outcome: Outcome) -> None:
    """Record the spans of an attempt that ended its job."""
    if job.traceparent is None or not tracing.is_on():
        return
    attempt = tracing.record(
        "attempt",
        claimed_at,
        outcome.finished_at,
        parent=job.traceparent,
        error=outcome.error.code if outcome.error is not None else None,
        belljar_job=job.id,
        belljar_attempt=job.attempt,
        belljar_image=job.image,
        belljar_status=outcome.status.value,
        belljar_exit__code=outcome.exit_code,
        belljar_machine_source=outcome.machine.source if outcome.machine is not None else None,
    )
    for name, begin, end in _phases(claimed_at, outcome):
        tracing.record("script" if name == "run" else name, begin, end, parent=attempt)


def trace_lost_attempt(job: Job, claimed_at: datetime, code: str) -> None:
    """Record the span of an attempt that was lost."""
    if job.traceparent is not None:
        tracing.record(
            "attempt",
            claimed_at,
            datetime.now(UTC),
            parent=job.traceparent,
            error=code,
            belljar_job=job.id,
            belljar_attempt=job.attempt,
        )


def _phases(claimed_at: datetime, outcome: Outcome) -> Iterator[tuple[str, datetime, datetime]]:
    """Yield the phases with their times: those before the script's start end there, the others begin there."""
    durations = {name: timedelta(milliseconds=each) for name, each in outcome.timings.phases.items()}
    before = {name: each for name, each in durations.items() if name not in _AFTER_START}
    started_at, lead = outcome.started_at, sum(before.values(), timedelta())
    at = claimed_at if started_at is None else max(claimed_at, started_at - lead)
    for name, duration in before.items():
        yield name, at, at + duration
        at += duration
    at = started_at or at
    for name, duration in durations.items():
        if name in _AFTER_START:
            yield name, at, at + duration
            at += duration
