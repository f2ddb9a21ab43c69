"""Waiters are woken by changes, once for any number of them, also by those of other processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import structlog

from belljar.control.jobs import polling as polling_module
from belljar.control.jobs.changes import Changes
from belljar.control.jobs.polling import polling
from belljar.control.logs.log import log_path
from belljar.model.errors import HostError


async def test_a_watch_is_woken_once_for_many_changes_and_misses_none() -> None:
    changes = Changes()
    with changes.watching("a") as watch:
        assert watch.take_job_changed()
        assert not await watch.wait(0.01)
        for _ in range(1000):
            changes.notify_log("a")
        changes.notify("b")
        assert await watch.wait(1)
        assert not watch.take_job_changed()
        assert not await watch.wait(0.01)
        changes.notify("a")
        changes.notify_log("a")
        assert await watch.wait(1)
        assert watch.take_job_changed()
    assert changes.watched() == []


async def test_who_waits_for_a_jobs_end_is_not_woken_by_its_log() -> None:
    changes = Changes()
    with changes.watching("a", of_log=False) as watch:
        changes.notify_log("a")
        assert not await watch.wait(0.01)
        changes.notify("a")
        assert await watch.wait(30)


async def test_a_revoked_key_and_the_end_of_the_server_wake_everybody() -> None:
    changes = Changes()
    with changes.watching("a") as first, changes.watching("b") as second:
        changes.notify_revoked("key_1")
        assert await first.wait(1) and await second.wait(1)
        assert changes.is_revoked("key_1") and not changes.is_revoked("key_2")
        changes.stop()
        assert await first.wait(1) and await second.wait(1)
        assert changes.stopping


class Store:
    def __init__(self) -> None:
        self.states: dict[str, object] = {}
        self.revoked: list[str] = []
        self.looks = 0
        self.fails: Exception | None = None

    async def jobs(self, job_ids: Sequence[str]) -> dict[str, object]:
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        return {job_id: self.states[job_id] for job_id in job_ids if job_id in self.states}

    async def projects(self) -> list[str]:
        return []

    async def keys(self, _moment: datetime) -> list[str]:
        return self.revoked


async def test_changes_of_other_processes_are_found_and_nothing_is_polled_without_waiters(
    tmp_path: Path,
) -> None:
    changes, store = Changes(), Store()
    polling_module.POLL_SECONDS, before = 0.01, polling_module.POLL_SECONDS
    try:
        async with asyncio.timeout(30), polling(changes, store.jobs, (store.keys,), store.projects, tmp_path):
            await asyncio.sleep(0.1)
            assert store.looks == 0
            with changes.watching("a") as watch:
                store.states["a"] = "queued"
                assert await watch.wait(10)  # the first look
                store.states["a"] = "running"
                assert await watch.wait(10)
                watch.take_job_changed()
                log_path(tmp_path, "a").parent.mkdir(parents=True)
                log_path(tmp_path, "a").write_bytes(b"more")
                assert await watch.wait(10)
                assert not watch.take_job_changed()
                store.revoked = ["key_1"]
                assert await watch.wait(10)
                assert changes.is_revoked("key_1")
    finally:
        polling_module.POLL_SECONDS = before


async def test_a_failed_poll_is_repeated(tmp_path: Path) -> None:
    changes, store = Changes(), Store()
    before = polling_module.POLL_SECONDS, polling_module.RETRY_SECONDS
    polling_module.POLL_SECONDS = polling_module.RETRY_SECONDS = 0.01
    try:
        with structlog.testing.capture_logs() as log:
            async with asyncio.timeout(30), polling(changes, store.jobs, (store.keys,), store.projects, tmp_path):
                with changes.watching("a") as watch:
                    for failure in (HostError("no room"), RuntimeError("a bug")):
                        store.fails = failure
                        looks = store.looks
                        while store.looks < looks + 2:
                            await asyncio.sleep(0.01)
                    store.fails, store.states["a"] = None, "running"
                    assert await watch.wait(10)
        assert {entry["event"] for entry in log} == {"change_poll_failed"}
    finally:
        polling_module.POLL_SECONDS, polling_module.RETRY_SECONDS = before
