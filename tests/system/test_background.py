"""Background tasks that fail: they start again, and take nothing down."""

from __future__ import annotations

import asyncio
import errno

import pytest
from structlog.testing import capture_logs

from belljar.model.errors import HostError
from belljar.system.background import Backoff, failure_count, supervise
from belljar.system.counters import all_counts, increment


class Flaky:
    """Fails as often as it is told, then does its work until `stop`."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.calls = 0
        self.working = asyncio.Event()
        self.stop = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        self.working.set()
        await self.stop.wait()


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), HostError("the database failed"), RuntimeError("a bug")]
)
async def test_a_task_that_fails_starts_again_and_its_neighbour_goes_on(error: Exception) -> None:
    name = f"test_{type(error).__name__}"
    flaky, steady = Flaky(error, error), Flaky()
    before = failure_count(name)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(supervise(name, flaky, first_pause_seconds=0.001))
        group.create_task(supervise("test_steady", steady, first_pause_seconds=0.001))
        await flaky.working.wait()
        assert steady.calls == 1
        flaky.stop.set()
        steady.stop.set()
    assert flaky.calls == 3
    assert failure_count(name) - before == 2


async def test_a_failure_is_logged_with_its_task_and_a_bug_with_its_traceback() -> None:
    flaky = Flaky(HostError("no room left"), RuntimeError("a bug"))
    flaky.stop.set()
    with capture_logs() as logs:
        await supervise("test_logged", flaky, first_pause_seconds=0.001)
    known, bug = (entry for entry in logs if entry["event"] == "background_task_failed")
    assert known["task"] == bug["task"] == "test_logged"
    assert known["error"] == "no room left" and known["exc_info"] is None
    assert isinstance(bug["exc_info"], RuntimeError)
    assert known["retry_seconds"] < bug["retry_seconds"]


async def test_cancelling_ends_a_task_at_its_work_and_in_its_pause() -> None:
    working, pausing = Flaky(), Flaky(OSError("no"))
    tasks = [
        asyncio.create_task(supervise("test_working", working)),
        asyncio.create_task(supervise("test_pausing", pausing, first_pause_seconds=3600)),
    ]
    await working.working.wait()
    while not pausing.calls:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(10):
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
        )


def test_pauses_grow_up_to_a_bound_and_start_over_after_a_success() -> None:
    backoff = Backoff(1, 5)
    assert [backoff.next() for _ in range(4)] == [1, 2, 4, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_a_counter_without_a_description_is_refused() -> None:
    with pytest.raises(KeyError):
        increment("belljar_nonsense")
    assert "belljar_nonsense" not in all_counts()
