"""Which lost attempts of a run without a server are repeated, and what the job shows afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from belljar.model.errors import MachineError
from belljar.model.job import Artifact, Job, LogInfo, Resources
from belljar.model.states import Status
from belljar.node.guest.wire import Exited
from belljar.node.worker.attempt_end import AttemptEnd
from belljar.node.worker.local_run import LocalObserver, run_local_job
from belljar.node.worker.runner import JobInput, JobRun
from support.agent_process import ProcessHypervisor

JOB = Job(
    id="job_1",
    project="local",
    script_id="a" * 64,
    status=Status.QUEUED,
    created_at=datetime.now(UTC),
    language="python",
    entrypoint="main.py",
    image="python",
    resources=Resources(vcpus=1, memory_mb=128),
    timeout_seconds=30,
    max_attempts=3,
)
EXITED = Exited(exit_code=0, signal=None, cpu_us=1500, max_memory_bytes=1 << 20, oom_kills=0, run_us=2000)


class Observer(LocalObserver):
    def __init__(self) -> None:
        super().__init__()
        self.sentences: list[str] = []

    def notify(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def logs(self) -> LogInfo:
        return LogInfo(stdout_bytes=3)

    def kept_artifacts(self) -> Sequence[Artifact]:
        return [Artifact(path="out.txt", size_bytes=5)]


class LosingRunner:
    """Loses its first machines, before or after the script has begun."""

    def __init__(self, lost: int, *, begins: bool) -> None:
        self.attempts = 0
        self._lost = lost
        self._begins = begins

    async def prepare(self, run: JobRun) -> Any:
        run.observer.on_hypervisor(ProcessHypervisor(Path("none")))  # type: ignore[arg-type]
        return None

    async def install_packages(self, run: JobRun, prepared: Any) -> Any:
        run.observer.on_phase("dependencies", 7.0)
        return prepared

    @asynccontextmanager
    async def attempt(self, run: JobRun, prepared: Any) -> AsyncIterator[AttemptEnd]:
        self.attempts += 1
        lost = self.attempts <= self._lost
        if self._begins or not lost:
            run.observer.on_machine("boot")
            run.observer.on_started()
        if lost:
            raise MachineError("the machine died")
        yield AttemptEnd(exited=EXITED, phases={"boot": 5.0, "run": 2.0}, is_over=True)


async def run(runner: LosingRunner) -> tuple[Job, Observer]:
    observer, cancellable = Observer(), asyncio.Event()
    job_input = JobInput(script_disk=Path("none"), stdin=b"")
    job = await run_local_job(runner, JOB, job_input, observer, asyncio.Event(), cancellable)  # type: ignore[arg-type]
    assert cancellable.is_set()
    return job, observer


async def test_attempts_are_repeated_until_the_script_begins() -> None:
    runner = LosingRunner(2, begins=False)
    job, observer = await run(runner)
    assert (job.status, job.attempt, runner.attempts) == (Status.SUCCEEDED, 3, 3)
    assert observer.sentences == [f"attempt {number} was lost: the machine died; trying again" for number in (1, 2)]


async def test_a_script_that_has_begun_is_not_begun_again() -> None:
    runner = LosingRunner(1, begins=True)
    with pytest.raises(MachineError, match="the machine died"):
        await run(runner)
    assert runner.attempts == 1


async def test_the_last_attempt_that_is_lost_is_the_end() -> None:
    runner = LosingRunner(3, begins=False)
    with pytest.raises(MachineError, match="the machine died"):
        await run(runner)
    assert runner.attempts == 3


async def test_the_job_shows_what_a_server_would_show() -> None:
    job, _ = await run(LosingRunner(0, begins=True))
    assert job.exit_code == 0 and job.error is None and job.started_at is not None
    assert job.finished_at is not None and job.finished_at >= job.started_at
    assert job.machine is not None and (job.machine.source, job.machine.hypervisor) == ("boot", "process")
    assert job.timings.phases == {"dependencies": 7.0, "boot": 5.0, "run": 2.0}
    assert (job.timings.queue_ms, job.timings.run_ms) == (0, 2.0)
    assert job.logs.stdout_bytes == 3 and [each.path for each in job.kept_artifacts] == ["out.txt"]
    assert job.usage.cpu_seconds == 0.0015
