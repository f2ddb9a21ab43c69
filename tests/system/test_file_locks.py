"""Locks on files, within a process, between processes, and after a holder was killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from belljar.system.file_locks import byte_lock, try_lock, wait_for_lock

_HOLD = """
import sys, time
from pathlib import Path
from belljar.system.file_locks import try_lock
with try_lock(Path(sys.argv[1])) as is_locked:
    print(is_locked, flush=True)
    time.sleep(60)
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holder_at_a_time_and_a_killed_one_lets_go(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    with holder(path) as process:
        with try_lock(path) as is_locked:
            assert not is_locked
        process.kill()
        with try_lock(path, wait_seconds=10) as is_locked:
            assert is_locked


def test_locking_a_file_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("name")
    with try_lock(path) as is_locked:
        assert is_locked and path.read_text() == "name"


def test_a_lock_on_a_file_that_its_holder_removed_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_lock(path):
        late = threading.Timer(0.2, path.unlink)
        late.start()
        late.join()
        with try_lock(path) as is_locked:
            assert is_locked  # a new file


def test_waiting_is_reported_once_and_ends_with_the_holder(tmp_path: Path) -> None:
    path, waits = tmp_path / "lock", []
    with wait_for_lock(path, on_wait=lambda: waits.append("free")):
        pass
    assert waits == []
    with holder(path) as process, wait_for_lock(path, on_wait=process.kill):
        process.wait(10)


async def test_bytes_of_one_file_are_locks_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "locks"
    async with byte_lock(path, 1, wait_seconds=0), byte_lock(path, 2**55, wait_seconds=0):
        with pytest.raises(TimeoutError):
            async with byte_lock(path, 1, wait_seconds=0.05):
                pass
    async with asyncio.timeout(5), byte_lock(path, 1, wait_seconds=5):
        pass
