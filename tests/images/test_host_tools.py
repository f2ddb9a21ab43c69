"""Tools of the host: limited in time, reaped with all their children, reported with their reason."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from belljar.images.host_tools import require_tools, run_tool
from belljar.model.errors import DiskFull, HostError, ImageBuildError, MissingTool
from support.running import alive


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs/build.log"


async def test_output_is_returned_and_errors_are_logged(log: Path) -> None:
    assert await run_tool(["sh", "-c", "echo out; echo err >&2"], log=log, timeout_seconds=10) == "out\n"
    await run_tool(["sh", "-c", "echo more >&2"], log=log, timeout_seconds=10)
    assert log.read_text() == "err\nmore\n"


async def test_input_and_output_may_be_files(log: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("abc")
    call_ = run_tool(["tr", "a", "x"], log=log, timeout_seconds=10, stdin=tmp_path / "in", stdout=tmp_path / "out")
    assert await call_ == ""
    assert (tmp_path / "out").read_text() == "xbc"


async def test_a_failure_is_reported_with_its_reason_and_the_log(log: Path) -> None:
    await run_tool(["sh", "-c", "echo of an earlier call >&2"], log=log, timeout_seconds=10)
    with pytest.raises(ImageBuildError, match=r"sh failed \(exit 3\): E: no such package; .*build\.log"):
        await run_tool(
            ["sh", "-c", "echo 'E: no such package' >&2; echo >&2; echo; echo chatter; exit 3"],
            log=log,
            timeout_seconds=10,
        )
    with pytest.raises(ImageBuildError, match="no output"):
        await run_tool(["false"], log=log, timeout_seconds=10)


async def test_a_full_disk_is_reported_as_such(log: Path) -> None:
    with pytest.raises(DiskFull, match="free some space"):
        await run_tool(["dd", "if=/dev/zero", "of=/dev/full", "bs=1k", "count=1"], log=log, timeout_seconds=10)


async def children(pids: Path) -> list[int]:
    async with asyncio.timeout(10):
        while not pids.exists() or len(pids.read_text().split()) < 2:
            await asyncio.sleep(0.01)
    return [int(pid) for pid in pids.read_text().split()]


STUBBORN = "trap '' TERM; sleep 300 & echo $$ $! >{}; wait"


async def wait_until_ended(pids: list[int]) -> None:
    async with asyncio.timeout(10):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.01)


async def test_a_timeout_kills_the_program_and_its_children(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match=r"sh timed out after 0\.5 s"):
        await run_tool(["sh", "-c", STUBBORN.format(tmp_path / "pids")], log=log, timeout_seconds=0.5)
    await wait_until_ended(await children(tmp_path / "pids"))


async def test_cancelling_kills_the_program_and_its_children(log: Path, tmp_path: Path) -> None:
    task = asyncio.create_task(run_tool(["sh", "-c", STUBBORN.format(tmp_path / "pids")], log=log, timeout_seconds=60))
    pids = await children(tmp_path / "pids")
    assert all(alive(pid) for pid in pids)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until_ended(pids)


def test_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingTool, match="mmdebstrap not found; install with: apt-get install mmdebstrap"):
        require_tools("mmdebstrap")
    with pytest.raises(HostError, match="neither Debian nor Ubuntu"):
        require_tools("apt-get", "mmdebstrap")


def test_system_folders_need_not_be_on_an_ordinary_users_path(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/usr/sbin/mkfs.ext4", os.X_OK):
        pytest.skip("needs e2fsprogs")
    monkeypatch.setenv("PATH", "/usr/bin")
    require_tools("mkfs.ext4")
