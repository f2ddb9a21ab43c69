"""`belljar bench --sustained` against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def test_jobs_at_a_rate_are_measured_beside_other_runtimes(built_images: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    command = [sys.executable, "-m", "belljar", "bench", "--sustained", "--rates", "4", "--arrivals", "fixed"]
    options = ["--seconds", "2", "--json", "--data-dir", str(data_dir)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    ours, *others = measured["sustained"]
    assert (ours["target"], ours["arrivals"], ours["rate_per_second"], ours["jobs"]) == ("belljar", "fixed", 4.0, 6)
    assert ours["failed"] == 0
    assert 0 < ours["p50_ms"] <= ours["p90_ms"] <= ours["p99_ms"]
    assert 0 <= ours["hit_rate"] <= 1
    assert [(each["failed"], each["hit_rate"]) for each in others] == [(0, None)] * len(others)
    assert "bare python3, no sandbox" in {each["target"] for each in others}
    (highest,) = measured["highest"]
    assert highest["jobs_per_second"] > 0
    assert "4/s fixed, 6 jobs" in run.stderr
