"""Networks of `belljar run` and of killed servers: what is shown, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.internet import NAMESERVER, WEB, SimulatedInternet, host_state
from support.killed_half_way import run_jobs
from support.running import TRY, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]


def test_belljar_run_shows_what_was_refused(internet: SimulatedInternet, data_dir: Path, tmp_path: Path) -> None:
    before = host_state()
    script = tmp_path / "try.py"
    script.write_text(TRY)
    command = [sys.executable, "-m", "belljar", "run", str(script), "--egress", f"{WEB}:80,www.example.org"]
    command += ["--data-dir", str(data_dir), "--", f"{WEB}:80", f"{WEB}:81", "pypi.org:443"]
    environment = {**os.environ, "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]'}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{WEB}:80 web", f"{WEB}:81 ConnectionRefusedError", "pypi.org:443 gaierror"]
    assert f"belljar: refused a connection to {WEB}:81 by tcp: egress is {WEB}:80, www.example.org" in ran.stderr
    assert "belljar: refused the name 'pypi.org'" in ran.stderr
    assert host_state() == before


def test_after_kill_9_the_next_start_clears_the_networks(internet: SimulatedInternet, data_dir: Path) -> None:
    before = host_state()
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        job = server.submit("import time\ntime.sleep(60)\n", egress="open", max_attempts=1)
        server.until(job, "running")
        assert host_state() != before
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert host_state() != before
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        assert server.wait(job)["status"] == "lost"
        deadline = time.monotonic() + 10
        while host_state() != before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert host_state() == before


def test_many_jobs_and_a_kill_9_among_them_leave_the_host_as_it_was(
    internet: SimulatedInternet, data_dir: Path
) -> None:
    before = host_state()
    ended = run_jobs(data_dir, 12, BELLJAR_DEFAULT_MEMORY_MB="128")
    assert sum(ended.counts.values()) == 12 and ended.interrupted >= 1
    assert "belljar-" in ended.killed["ip netns"] and "table inet belljar_" in ended.killed["nft list ruleset"]
    assert host_state() == before
