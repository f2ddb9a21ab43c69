"""Commands in namespaces end with their parent; folders with files of several owners are removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from belljar.images.build_sandbox import remove_tree, sandboxed_command
from belljar.images.host_tools import run_tool
from belljar.model.errors import HostError, ImageBuildError
from support.running import alive, descendants

#: Starts a process that starts another, in a session of its own.
TREE = ["sh", "-c", "setsid sleep 300 & setsid sleep 300 & wait"]
PARENT = f"""
import asyncio, pathlib, sys
from belljar.images.build_sandbox import sandboxed_command
from belljar.images.host_tools import run_tool
argv = sandboxed_command({TREE}) if sys.argv[1] == "contained" else ["sleep", "300"]
asyncio.run(run_tool(argv, log=pathlib.Path(sys.argv[2]), timeout_seconds=300))
"""


@pytest.fixture(autouse=True)
def namespaces() -> None:
    try:
        if "unshare" not in sandboxed_command(["true"]):
            pytest.skip("no namespaces can be made here")
    except HostError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize(("how", "count"), [("contained", 4), ("alone", 1)])
def test_a_command_dies_with_a_killed_parent(tmp_path: Path, how: str, count: int) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, how, str(tmp_path / "log")])
    try:
        deadline = time.monotonic() + 60
        while len(children := descendants(parent.pid)) < count or not has_started(children):
            assert parent.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_started(pids: list[int]) -> bool:
    return any(b"sleep\x00300" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if alive(pid))


async def test_output_and_exit_code_are_the_commands_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert await run_tool(sandboxed_command(["echo", "a b"]), log=log, timeout_seconds=60) == "a b\n"
    with pytest.raises(ImageBuildError, match=r"tool failed \(exit 3\): no$"[:-1]):
        await run_tool(sandboxed_command(["sh", "-c", "echo no >&2; exit 3"]), name="tool", log=log, timeout_seconds=60)


async def test_mounts_and_processes_are_not_visible_outside(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    script = (
        f"mount -t tmpfs none {tmp_path}/place && touch {tmp_path}/place/inside && echo $(ls -d /proc/[0-9]* | wc -l)"
    )
    processes = await run_tool(sandboxed_command(["sh", "-c", script]), log=tmp_path / "log", timeout_seconds=60)
    assert int(processes) < 10
    assert list((tmp_path / "place").iterdir()) == []


async def test_the_command_is_root_in_closed_folders_of_the_user(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    script = f"id -u; touch {closed}/file && chown 33:34 {closed}/file && stat -c %u:%g {closed}/file"
    output = await run_tool(sandboxed_command(["sh", "-c", script]), log=tmp_path / "log", timeout_seconds=60)
    assert output.split() == ["0", "33:34"]
    remove_tree(closed)
    assert not closed.exists()


def test_removing_a_missing_folder_does_nothing(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
    assert os.listdir(tmp_path) == []
