"""belljar as process 1 of a container: in a namespace of processes of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytestmark = [pytest.mark.root, pytest.mark.process]

_PROGRAM = """
import os, signal, subprocess, sys, time
from belljar.cli.container_init import run_below_init
run_below_init()
{}
"""
#: A grandchild whose parent ends first, and which then ends itself: nobody but process 1 can reap it.
_ORPHAN = """
subprocess.run(["sh", "-c", "sleep 0.2 & exit 0"])
deadline = time.monotonic() + 20
def others():
    return {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
while others() and time.monotonic() < deadline:
    time.sleep(0.05)
print(os.getpid() != 1, others(), flush=True)
"""


@contextmanager
def first_process(program: str) -> Iterator[subprocess.Popen[str]]:
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    command = [
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-c",
        _PROGRAM.format(program),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_orphans_are_reaped() -> None:
    with first_process(_ORPHAN) as process:
        out, _ = process.communicate(timeout=60)
    assert out == "True set()\n"


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_its_exit_code_is_that_of_belljar(ends: str, code: int) -> None:
    with first_process(ends) as process:
        assert process.wait(60) == code


def test_a_signal_to_process_1_reaches_belljar() -> None:
    waits = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('ready', flush=True); time.sleep(60)"
    with first_process(waits) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        first = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", first.stdout.strip()], check=True)
        assert process.wait(60) == 9


def test_any_other_process_goes_on_by_itself() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format("print(os.getpgrp() != os.getpid())")], capture_output=True
    )
    assert run.stdout == b"True\n"
