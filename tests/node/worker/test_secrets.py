"""A worker gives a job its secrets through the real agent, masks what it prints of them, and keeps none of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.control.blobs.store import open_blobs
from belljar.control.logs.log import JobLog
from belljar.control.store.projects import SqlProjects
from belljar.link.secrets import JobSecret
from belljar.model.image import Language
from belljar.model.job import Job, Resources
from belljar.model.log_stream import LogStream
from belljar.model.secrets import SecretUse, SecretValue
from belljar.model.states import Status
from belljar.node.guest.command import Command
from belljar.node.worker.job_secrets import with_secrets
from belljar.node.worker.plan import plan_attempt
from support.worker_harness import WorkerHarness

VALUE = b"hunter2-hunter2"


async def output(harness: WorkerHarness, job: Job, stream: LogStream = LogStream.STDOUT) -> bytes:
    log = JobLog(harness.settings.data_dir, open_blobs(harness.settings), job.id)
    return b"".join([record.data async for record in log.read() if record.stream is stream])


def uses(*names: str) -> tuple[SecretUse, ...]:
    return tuple(SecretUse(name=name) for name in names)


@pytest.fixture
async def secret(harness: WorkerHarness) -> AsyncIterator[None]:
    await SqlProjects(harness.database).create("mine")
    await harness.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    yield
    base = harness.settings.data_dir
    files = [path for path in base.rglob("*") if path.is_file()]
    assert files and all(VALUE not in path.read_bytes() for path in files)


async def test_a_job_has_its_secret_and_prints_a_mask(harness: WorkerHarness, secret: None) -> None:
    script = 'echo "out $TOKEN"; echo "err $TOKEN" >&2; printf "%s" "$TOKEN" | wc -c'
    async with harness.working():
        job = await harness.ended(await harness.submit(script, secrets=uses("TOKEN")))
    assert (job.status, job.secret_versions) == (Status.SUCCEEDED, {"TOKEN": 1})
    assert await output(harness, job) == b"out ***\n15\n"
    assert await output(harness, job, LogStream.STDERR) == b"err ***\n"
    assert (job.logs.stdout_bytes, job.logs.stderr_bytes) == (11, 8)


async def test_one_that_is_printed_in_pieces_is_masked(harness: WorkerHarness, secret: None) -> None:
    script = 'for letter in $(printf "%s" "$TOKEN" | sed "s/./& /g"); do printf "%s" "$letter"; sleep 0.05; done'
    async with harness.working():
        job = await harness.ended(await harness.submit(script, secrets=uses("TOKEN")))
    assert await output(harness, job) == b"***"


async def test_the_beginning_of_one_at_the_end_of_the_output_is_not_lost(harness: WorkerHarness, secret: None) -> None:
    async with harness.working():
        job = await harness.ended(await harness.submit("printf 'so: hunt'", secrets=uses("TOKEN")))
        stopped = await harness.submit("printf 'so: hunt'; sleep 60", secrets=uses("TOKEN"), timeout_seconds=1)
        stopped = await harness.ended(stopped)
    assert await output(harness, job) == b"so: hunt"
    assert stopped.status is Status.TIMED_OUT and await output(harness, stopped) == b"so: hunt"


async def test_a_job_may_want_no_mask(harness: WorkerHarness) -> None:
    await SqlProjects(harness.database).create("mine")
    await harness.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    async with harness.working():
        job = await harness.submit('echo "$TOKEN"', secrets=uses("TOKEN"), mask_secrets=False)
        job = await harness.ended(job)
    assert await output(harness, job) == VALUE + b"\n"


async def test_a_secret_that_was_removed_ends_the_job_with_its_name(harness: WorkerHarness, secret: None) -> None:
    job = await harness.submit("echo never", secrets=uses("TOKEN"))
    await harness.secrets.remove("mine", "TOKEN")
    async with harness.working():
        job = await harness.ended(job)
    assert (job.status, job.attempt, job.lost_attempts) == (Status.FAILED, 1, ())
    assert job.error is not None and job.error.code == "secret_missing" and '"TOKEN"' in job.error.message


async def test_a_lost_key_costs_the_attempts_and_says_why(harness: WorkerHarness) -> None:
    await SqlProjects(harness.database).create("mine")
    await harness.secrets.set("mine", "TOKEN", SecretValue(VALUE))
    harness.settings.paths.secrets_key.rename(harness.settings.data_dir / "kept")
    async with harness.working():
        job = await harness.ended(await harness.submit("echo never", secrets=uses("TOKEN")))
    assert job.status is Status.LOST and job.error is not None and job.error.code == "secrets_key"


async def test_the_next_attempt_gets_the_secret_again(harness: WorkerHarness, secret: None) -> None:
    harness.faults.refuse("provisioner.machine", times=1)
    async with harness.working():
        job = await harness.ended(await harness.submit('echo "$TOKEN"', secrets=uses("TOKEN")))
    assert (job.status, await output(harness, job)) == (Status.SUCCEEDED, b"***\n")


async def test_the_output_of_a_machine_that_dies_is_masked_to_its_end(harness: WorkerHarness, secret: None) -> None:
    script = 'printf "last %s hunt" "$TOKEN"; sleep 60'
    async with harness.working():
        job = await harness.submit(script, secrets=uses("TOKEN"), max_attempts=1)
        await harness.running(job)
        async with asyncio.timeout(20):
            while not await output(harness, job):
                await asyncio.sleep(0.02)
        await harness.hypervisor.made[-1].kill()
        job = await harness.ended(job)
    assert job.status is Status.LOST
    assert await output(harness, job) == b"last *** hunt"


def test_a_secret_replaces_a_variable_of_the_image_and_a_file_has_its_path() -> None:
    secrets = [JobSecret(name=name, version=1, value=SecretValue(name.encode())) for name in ("A", "B")]
    named = [SecretUse(name="A"), SecretUse.model_validate({"name": "B", "as": "file", "env": "B_FILE"})]
    command = Command(argv=["x"], env={"A": "image", "C": "kept"}, prefork="python")
    given = with_secrets(command, named, secrets)
    assert given.env == {"C": "kept", "B_FILE": "/run/secrets/B"} and given.prefork == "python"
    assert given.secret_env == {"A": SecretValue(b"A")} and given.secret_files == {"B": SecretValue(b"B")}
    assert "b'A'" not in repr(given)


def test_a_waiting_interpreter_does_not_run_a_job_whose_secret_it_reads_at_its_start() -> None:
    secret = JobSecret(name="K", version=1, value=SecretValue(b"x"))
    command = Command(argv=["x"], env={}, prefork="node")
    assert with_secrets(command, [SecretUse(name="K")], [secret]).prefork == "node"
    assert with_secrets(command, [SecretUse(name="K", env="NODE_AUTH")], [secret]).prefork == ""


def test_a_compiler_gets_no_secrets(harness: WorkerHarness, tmp_path: Path) -> None:
    language = Language(name="shell", compile=("cc", "{entrypoint}"), run=("{output}",))
    manifest = harness.image.manifest.model_copy(update={"languages": (language,)})
    image = harness.image.model_copy(update={"manifest": manifest})
    job = Job(
        id="job_1",
        project="mine",
        script_id="s",
        status=Status.STARTING,
        created_at=datetime.now(UTC),
        language="shell",
        entrypoint="main.c",
        image="harness",
        resources=Resources(vcpus=1, memory_mb=128),
        timeout_seconds=5,
        secrets=uses("K"),
    )
    secret = JobSecret(name="K", version=1, value=SecretValue(b"value"))
    plan = plan_attempt(job, image, tmp_path, b"", harness.settings, secrets=[secret])
    assert plan.compile is not None and plan.compile.secret_env == {} == plan.compile.secret_files
    assert plan.command.secret_env == {"K": SecretValue(b"value")}
