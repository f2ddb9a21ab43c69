"""Many jobs through workers that are killed, over a store and blobs that refuse: what is lost, doubled or left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from belljar.control.blobs.store import open_blobs
from belljar.control.logs.log import JobLog
from belljar.control.store.nodes import SqlNodes
from belljar.model.job import Job
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.worker_harness import WorkerHarness
from support.worker_harness_process import worker_process

#: What goes wrong for a while: lines of PATTERN PROBABILITY; most of the time nothing does.
TROUBLES = (
    "",
    "",
    "claims.* 0.2\n",
    "blobs.* 0.3\n",
    "claims.* 1\n",
    "blobs.* 1\n",
    "*.* 0.05\n",
    "provisioner.machine 0.3\nscript_disks.path 0.3\nnodes.* 0.5\n",
)


@dataclass
class Report:
    """What came of it. Everything but the first four should be empty."""

    jobs: int
    statuses: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    kills: int = 0
    #: Jobs whose script was over, on the word of the worker that ran it, more than once.
    doubled: list[str] = field(default_factory=list)
    #: Jobs that did not end, or not as their scripts do.
    lost: list[str] = field(default_factory=list)
    #: Jobs whose kept output is not what their last attempt said.
    output: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.doubled or self.lost or self.output or self.leaked)


def script_of(number: int) -> str:
    """A script of up to half a second that says who it is, leaves an artifact, and ends with a code of its own."""
    pause = (number % 10) * 0.05
    return f"cat; echo job {number}; sleep {pause}; echo made > out{number}.txt; exit {number % 3}"


async def soak(
    harness: WorkerHarness, agent: Path, count: int, *, workers: int, kill_seconds: float, seed: int
) -> Report:
    """Run so many jobs. Every worker is killed once it runs one, then every `kill_seconds` on average, and replaced."""
    chance, report = random.Random(seed), Report(count)
    jobs = [
        await harness.submit(script_of(number), stdin=b"in\n", artifacts=("*.txt",), max_attempts=50)
        for number in range(count)
    ]
    troubled = asyncio.create_task(_trouble(harness.settings.data_dir, chance))
    names = [f"w{number}" for number in range(1, workers + 1)]
    stop = asyncio.Event()
    keepers = [asyncio.create_task(_keep(harness, agent, name, chance, kill_seconds, stop, report)) for name in names]
    try:
        await _until_ended(harness, count)
        troubled.cancel()
        (harness.settings.data_dir / "faults").write_text("")
        await _until_quiet(harness, names, report)
    finally:
        troubled.cancel()
        stop.set()
        await asyncio.gather(*keepers)
    for number, job in enumerate(jobs):
        await _judge(harness, number, await harness.get(job), report)
    report.doubled = _doubled(harness.settings.data_dir, names)
    # An end stays noted where the worker was killed before it knew that the control plane has it.
    report.leaked += [name for name in harness.leftovers() if "machines/" not in name and "run/outcomes/" not in name]
    report.leaked += _processes_of(agent)
    return report


async def _trouble(data_dir: Path, chance: random.Random) -> None:
    while True:
        (data_dir / "faults.new").write_text(chance.choice(TROUBLES))
        (data_dir / "faults.new").replace(data_dir / "faults")
        await asyncio.sleep(chance.uniform(0.3, 2))


async def _keep(
    harness: WorkerHarness,
    agent: Path,
    name: str,
    chance: random.Random,
    kill_seconds: float,
    stop: asyncio.Event,
    report: Report,
) -> None:
    """A worker of that name, killed and started again until told to stop."""
    wait = _until_one_runs(harness)
    while not stop.is_set():
        async with worker_process(harness.settings.data_dir, agent, name, harness.settings.lease_seconds) as process:
            await _first(wait, stop.wait())
            wait = asyncio.sleep(chance.uniform(0.5, 1.5) * kill_seconds)
            if stop.is_set():
                wait.close()
                return
            assert process.returncode is None, f"{name} ended by itself; its log is {name}.log in the data folder"
            process.kill()
            await process.wait()
            report.kills += 1


async def _until_one_runs(harness: WorkerHarness) -> None:
    while not (await harness.jobs.counts()).get(Status.RUNNING):
        await asyncio.sleep(0.01)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for whichever is over first; end the others."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _until_ended(harness: WorkerHarness, count: int) -> None:
    while True:
        counts = await harness.jobs.counts()
        if sum(number for status, number in counts.items() if status.terminal) == count:
            return
        await asyncio.sleep(0.2)


async def _until_quiet(harness: WorkerHarness, names: list[str], report: Report) -> None:
    """Wait until every worker says that it holds nothing and every log is in the blob store; tell when it does not."""
    logs: list[str] = []
    busy: list[str] = []
    try:
        async with asyncio.timeout(60):
            while True:
                nodes = {node.id: node for node in await SqlNodes(harness.database).list()}
                busy = [name for name in names if nodes[name].running_jobs or nodes[name].vcpus_free != 4]
                logs = [name for name in harness.leftovers() if name.endswith(".log")]
                if not busy and not logs:
                    return
                await asyncio.sleep(0.2)
    except TimeoutError:
        report.leaked.append(f"capacity of {busy}, logs {logs}")


async def _judge(harness: WorkerHarness, number: int, job: Job, report: Report) -> None:
    report.statuses[job.status] += 1
    report.attempts[job.attempt] += 1
    expected = Status.FAILED if number % 3 else Status.SUCCEEDED
    if (job.status, job.exit_code) != (expected, number % 3):
        report.lost.append(f"{job.id}: {job.status} {job.exit_code} {job.error}")
    log = JobLog(harness.settings.data_dir, open_blobs(harness.settings), job.id)
    records = [record async for record in log.read()]
    stdout = b"".join(each.data for each in records if each.stream is LogStream.STDOUT and each.attempt == job.attempt)
    whole = stdout == b"in\njob %d\n" % number and job.logs.stdout_bytes == len(stdout)
    has_error = job.logs.incomplete or (job.error is not None and job.error.code == "artifacts_incomplete")
    if not (whole or job.logs.incomplete) or not (len(job.kept_artifacts) == 1 or has_error):
        report.output.append(f"{job.id}: {stdout!r} {job.logs} {job.kept_artifacts} {job.error}")


def _doubled(data_dir: Path, names: list[str]) -> list[str]:
    text = "".join((data_dir / f"{name}.log").read_text() for name in names)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    ended = Counter(re.findall(r"script_ended .*?job=(\S+)", plain))
    return [job for job, times in ended.items() if times > 1]


def _processes_of(agent: Path) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if (
                os.fsencode(agent) in words
                and folder.name != str(os.getpid())
                and b"support.worker_harness_process" not in words
            ):
                found.append(f"process {folder.name}")
    return found
