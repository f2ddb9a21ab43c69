"""A sweep that is killed at any step leaves no record without its bytes, and nothing for ever."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from belljar.control.scripts.disks import disk_blob
from belljar.model.states import Status
from support.data_folder import Folder, opened
from support.examples import examples
from support.paths import TESTS

pytestmark = pytest.mark.process

USED, UNUSED = "b" * 64, "c" * 64
#: More than a whole sweep of this folder has.
STEPS = 90


def sweep_and_die(path: Path, step: int) -> bool:
    """Run a sweep that dies at a step; False when it had fewer."""
    command = [sys.executable, str(TESTS / "support/killed_sweep.py"), str(path), str(step)]
    run = subprocess.run(command, env={"PYTHONPATH": str(TESTS)}, capture_output=True, timeout=60)
    assert run.returncode in (0, -signal.SIGKILL), run.stderr.decode()
    return run.returncode != 0


async def check_nothing_is_missing(folder: Folder) -> None:
    """What has a row has its bytes."""
    for (job_id,) in folder.sql("SELECT id FROM jobs"):
        assert len(folder.bytes_of(job_id)) == 6, job_id
    for (script_id,) in folder.sql("SELECT id FROM scripts"):
        assert await folder.blobs.size(disk_blob(script_id)), script_id


@settings(max_examples=examples(8), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(st.integers(0, STEPS), min_size=1, max_size=3))
async def test_the_next_sweeps_complete_a_killed_one(steps: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        async with opened(path) as folder:
            await folder.script(UNUSED, days=400)
            await folder.script(USED, days=400)
            kept = await folder.end(Status.SUCCEEDED, 1, script_id=USED)
            old = [await folder.end(status, 400) for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)]
        for step in steps:
            sweep_and_die(path, step)
            async with opened(path) as folder:
                await check_nothing_is_missing(folder)
        async with opened(path) as folder:
            folder.sql("UPDATE maintenance SET first_run_at = 0")
            await folder.sweep(keep_stdin_days=0, keep_orphan_blobs_days=1e-9)
            await check_nothing_is_missing(folder)
            assert folder.sql("SELECT id FROM jobs") == [(kept.id,)]
            assert folder.sql("SELECT id FROM scripts") == [(USED,)]
            assert folder.sql("SELECT id FROM removed_jobs") == []
            assert [folder.bytes_of(job.id) for job in old] == [[], [], []]
            assert await folder.blobs.size(disk_blob(UNUSED)) is None


async def test_the_steps_are_those_of_a_whole_sweep(tmp_path: Path) -> None:
    async with opened(tmp_path) as folder:
        await folder.script(UNUSED, days=400)
        old = await folder.end(Status.SUCCEEDED, 400)
    assert sweep_and_die(tmp_path, 5)
    assert not sweep_and_die(tmp_path, 10 * STEPS)
    async with opened(tmp_path) as folder:
        assert not await folder.there(old)
