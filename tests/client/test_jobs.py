"""The SDK's jobs against the real application: submit once, wait, follow, and errors by class."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.client import AsyncClient, Conflict, JobFailed, NotFound, Refused, ServerError
from belljar.model.states import Status
from support.registered_images import register
from support.served import URL, Served, served


@asynccontextmanager
async def connected(data_dir: Path) -> AsyncIterator[tuple[AsyncClient, Served]]:
    """A client of the application, over its real routes without a socket."""
    register(data_dir, "python")
    async with served(data_dir) as serves, AsyncClient(URL) as client:
        client.transport.http = serves.http
        yield client, serves


async def test_a_job_has_its_fields_as_a_mapping_and_as_attributes(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, serves):
        job = await client.submit(code="print(1)", language="python", labels={"a": "b"})
        assert (job.id, job.status, job.exit_code, job.is_ended) == (job["id"], "queued", None, False)
        assert job["labels"] == {"a": "b"}
        with pytest.raises(JobFailed, match="is queued"):
            await job.check()
        waiting = asyncio.create_task(job.wait())
        await serves.end(await serves.begin(), exit_code=0)
        assert await waiting is job
        assert (job.status, job.exit_code, job.is_ended) == ("succeeded", 0, True)
        assert await job.check() is job
        assert [each.id async for each in client.iterate_jobs(label="a=b", limit=1)] == [job.id]


async def test_a_repeated_submission_is_the_same_job(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, _):
        first = await client.submit(code="print(1)", language="python", idempotency_key="k")
        assert (await client.submit(code="print(1)", language="python", idempotency_key="k")).id == first.id
        with pytest.raises(Conflict):
            await client.submit(code="print(2)", language="python", idempotency_key="k")
        others = [await client.submit(code="print(1)", language="python") for _ in range(2)]
        assert len({job["idempotency_key"] for job in others} | {None}) == 3


async def test_a_job_whose_caller_is_interrupted_is_cancelled(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, _):
        running = asyncio.create_task(client.run(code="print(1)", language="python"))
        while not (await client.jobs())["jobs"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        (job,) = [each async for each in client.iterate_jobs()]
        assert job.status == "cancelled"


async def test_a_failed_job_is_an_error_with_its_reason_when_it_is_checked(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, serves):
        job = await client.submit(code="print(1)", language="python")
        await serves.end(await serves.begin(), Status.FAILED, exit_code=3)
        with pytest.raises(JobFailed, match=f"the job {job.id} is failed: exit code 3") as failed:
            await (await job.refresh()).check()
        assert failed.value.job is job
        assert [each async for each in job.follow()] == []


async def test_errors_have_the_class_of_their_status(tmp_path: Path) -> None:
    async with connected(tmp_path) as (client, serves):
        with pytest.raises(NotFound, match="there is no job") as missing:
            await client.job("job_x")
        assert (missing.value.code, missing.value.status) == ("not_found", 404)
        assert missing.value.request_id
        with pytest.raises(Refused) as refused:
            await client.submit(code="print(1)", language="python", timeout_seconds=-1)
        assert refused.value.code == "invalid_option" and refused.value.details["option"] == "timeout_seconds"
        client.transport.http = serves.caller("wrong")
        with pytest.raises(ServerError) as stranger:
            await client.jobs()
        assert stranger.value.status == 401
