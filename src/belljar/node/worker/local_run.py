"""Runs one job without a server. A lost attempt is repeated only while the script has not begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from belljar.model.errors import MachineError
from belljar.model.job import Artifact, Job, LogInfo
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.attempt_record import AttemptRecord
from belljar.node.worker.job_network import format_refusals, network_use
from belljar.node.worker.runner import JobInput, JobRun, JobRunner


class LocalObserver(AttemptRecord):
    """The observer of a job without a server."""

    def notify(self, sentence: str) -> None:
        """Show a sentence to the user while the job runs."""
        raise NotImplementedError

    def logs(self) -> LogInfo:
        """Return how much of the job's output was passed on."""
        raise NotImplementedError

    def kept_artifacts(self) -> Sequence[Artifact]:
        """Return the artifacts that arrived whole."""
        raise NotImplementedError


async def run_local_job(
    runner: JobRunner,
    job: Job,
    job_input: JobInput,
    observer: LocalObserver,
    cancel: asyncio.Event,
    cancellable: asyncio.Event,
) -> Job:
    """Run a job to its end and return it as a server would.

    Sets `cancellable` as soon as setting `cancel` stops the job; before, the caller cancels the task. Raises
    LayerBuildError, MachineError, HostError.
    """

    async def fetch() -> JobInput:
        return job_input

    run = JobRun(job=job, fetch=fetch, observer=observer, cancel=cancel)
    prepared = await runner.prepare(run)
    cancellable.set()
    prepared = await runner.install_packages(run, prepared)
    for attempt in range(1, job.max_attempts + 1):
        try:
            async with runner.attempt(run, prepared) as end:
                pass
        except MachineError as error:
            # The output of a script that has begun has been shown: it must not be shown twice.
            if observer.started_at is not None or attempt == job.max_attempts:
                raise
            observer.notify(f"attempt {attempt} was lost: {error.message}; trying again")
        else:
            for sentence in format_refusals(network_use(end.traffic, end.flows), job):
                observer.notify(sentence)
            return _ended_job(job, attempt, end, observer)
    raise AssertionError("a loop over at least one attempt returns or raises")


def _ended_job(job: Job, attempt: int, end: AttemptEnd, observer: LocalObserver) -> Job:
    fields = observer.outcome_fields(
        job, end, claimed_at=job.created_at, logs=observer.logs(), kept=observer.kept_artifacts()
    )
    return job.model_copy(update={"attempt": attempt, **fields})
