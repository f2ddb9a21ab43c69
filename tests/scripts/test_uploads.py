"""Folders of uploads, their locks, folders of dead processes; receiving within a limit."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from belljar.model.errors import DataFolderError, DiskFull, TooLarge
from belljar.scripts.uploads import clear_stale_uploads, in_thread, receive, upload_folder


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_a_folder_is_removed_when_its_block_ends_or_fails(tmp_path: Path) -> None:
    async with upload_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
    with pytest.raises(RuntimeError):
        async with upload_folder(tmp_path) as folder:
            raise RuntimeError
    assert list((tmp_path / "run/uploads").iterdir()) == []


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is receiving an upload."""
    program = f"""
import asyncio, signal
from pathlib import Path
from belljar.scripts.uploads import upload_folder
async def main():
    async with upload_folder(Path({str(tmp_path)!r})) as folder:
        (folder / "half").write_text("x")
        print("ready", flush=True)
        signal.pause()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


async def test_only_folders_of_dead_processes_are_cleared(
    tmp_path: Path, other_process: subprocess.Popen[bytes]
) -> None:
    async with upload_folder(tmp_path) as mine:
        assert clear_stale_uploads(tmp_path) == 0
        other_process.kill()
        other_process.wait()
        assert clear_stale_uploads(tmp_path) == 1
        assert list((tmp_path / "run/uploads").iterdir()) == [mine]


def test_other_files_are_removed_too(tmp_path: Path) -> None:
    uploads, elsewhere = tmp_path / "run/uploads", tmp_path / "elsewhere"
    uploads.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (uploads / "stray").touch()
    (uploads / "link").symlink_to(elsewhere)
    (uploads / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(uploads / "pipe")
    (uploads / "abandoned").mkdir()
    assert clear_stale_uploads(tmp_path) == 5
    assert list(uploads.iterdir()) == [] and (elsewhere / "kept").exists()


def test_clearing_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    assert clear_stale_uploads(tmp_path) == 0


async def test_a_data_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DataFolderError, match="--data-dir"):
        async with upload_folder(tmp_path):
            pass


async def test_a_stream_is_written_unchanged(tmp_path: Path) -> None:
    chunks = [os.urandom(300_000) for _ in range(10)]
    assert await receive(stream(*chunks), tmp_path / "file", 3_000_000) == 3_000_000
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)


async def test_a_stream_over_the_limit_is_refused_at_once(tmp_path: Path) -> None:
    taken = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            taken.append(1)
            yield bytes(100_000)

    with pytest.raises(TooLarge, match="raise max_upload_mb"):
        await receive(endless(), tmp_path / "file", 1_000_000)
    assert len(taken) == 11


@pytest.mark.root
async def test_a_full_disk_is_reported(small_disk: Path) -> None:
    with pytest.raises(DiskFull):
        await receive(stream(bytes(2_000_000)), small_disk / "file", 10_000_000)


async def test_cancelled_work_is_stopped_and_awaited() -> None:
    started, stop, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        stop.wait(30)
        ended.set()

    task = asyncio.create_task(in_thread(work, stop=stop.set))
    await asyncio.to_thread(started.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
