"""A server whose machines are Firecracker's, over the fake: jobs by boot, by snapshot, from the pool; kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.node.machines.protocol import GUEST_MAC
from support.firecracker.building import build_fakes
from support.running import Server, alive, descendants, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]


@pytest.fixture(scope="module")
def stand_in_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    firecracker, jailer = build_fakes(tmp_path_factory.mktemp("programs"))
    return {
        "BELLJAR_HYPERVISOR": "firecracker",
        "BELLJAR_FIRECRACKER": str(firecracker),
        "BELLJAR_JAILER": str(jailer),
    }


@pytest.fixture(scope="module")
def server(
    built_images: Path, tmp_path_factory: pytest.TempPathFactory, stand_in_environment: dict[str, str]
) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("server") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    with serving(data_dir, **stand_in_environment) as server:
        yield server
        assert "Traceback" not in server.log.read_text()
    assert list(data_dir.glob("run/jails/*/*")) == []


def test_jobs_come_from_a_boot_then_a_snapshot_then_the_pool(server: Server) -> None:
    seen = set()
    deadline = time.monotonic() + 180
    while {"boot", "pool"} - seen and time.monotonic() < deadline:
        job = server.run("echo out; echo err >&2; exit 3", language="shell")
        assert (job["status"], job["exit_code"]) == ("failed", 3), job
        assert (job["machine"]["hypervisor"], job["machine"]["accelerator"]) == ("firecracker", "kvm")
        assert server.logs(job, stream="stdout") == b"out\n" and server.logs(job, stream="stderr") == b"err\n"
        seen.add(job["machine"]["source"])
    assert seen >= {"boot", "pool"}, server.log.read_text()


def test_python_its_files_and_artifacts(server: Server) -> None:
    code = "import pathlib, sys\npathlib.Path('out.txt').write_text(sys.stdin.read().upper())\n"
    job = server.run(code, stdin="hello", artifacts=["out.txt"])
    assert job["status"] == "succeeded", server.logs(job)
    assert server.http.get(f"/v1/jobs/{job['id']}/artifacts/out.txt").text == "HELLO"


def test_limits_on_rates_are_taken_and_shown(server: Server) -> None:
    limits = {"disk_mb": 64, "disk_mb_per_second": 50, "disk_iops": 500, "network_mbit_per_second": 10}
    job = server.run("echo limited", language="shell", **limits)
    assert job["status"] == "succeeded", server.logs(job)
    assert {name: job[name] for name in limits} == limits


def test_jobs_with_a_network_have_a_device_by_boot_and_by_snapshot(server: Server) -> None:
    code = "cat /sys/class/net/eth0/address; ls /sys/class/net; grep -c nameserver /etc/resolv.conf"
    seen = set()
    deadline = time.monotonic() + 120
    while {"boot", "snapshot"} - seen and time.monotonic() < deadline:
        job = server.run(code, language="shell", egress="open")
        assert job["status"] == "succeeded", (job, server.logs(job), server.log.read_text()[-2000:])
        assert server.logs(job, stream="stdout").startswith(GUEST_MAC.encode() + b"\neth0\n")
        seen.add(job["machine"]["source"])
    assert seen >= {"boot", "snapshot"}, server.log.read_text()


def test_a_killed_hypervisor_is_a_lost_attempt_that_is_tried_again(server: Server) -> None:
    job_id = server.submit("if [ -e /never ]; then :; fi; sleep 3; echo done", language="shell")
    server.until(job_id, "running")
    # Machines that wait for other jobs may be hit too, which must harm nothing.
    for pid in server.machines():
        os.kill(pid, signal.SIGKILL)
    job = server.wait(job_id)
    assert job["status"] == "succeeded" and job["attempt"] == 2, job
    assert job["lost_attempts"][0]["had_started"] is True


def test_a_killed_server_leaves_nothing_that_its_next_start_does_not_remove(
    built_images: Path, tmp_path: Path, stand_in_environment: dict[str, str]
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    with serving(data_dir, **stand_in_environment) as first:
        job_id = first.submit("sleep 60", language="shell", timeout_seconds=120)
        first.until(job_id, "running")
        machines = descendants(first.process.pid)
        assert list(data_dir.glob("run/jails/*/*"))
        first.process.kill()
        first.process.wait()
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in machines):  # the kernel ends them with their parent
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with serving(data_dir, **stand_in_environment) as second:
        second.http.post(f"/v1/jobs/{job_id}/cancel")
        second.wait(job_id)
        log = second.log.read_text()
    assert "leftovers_removed" in log
    assert list(data_dir.glob("run/jails/*/*")) == []
