"""Machines that wait in the pool with a network: opened for one job's policy, and for no other's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.test_networks import printed
from support.internet import NAMESERVER, NETNS, OTHER_WEB, WEB, SimulatedInternet, host_state
from support.running import TRY, Server, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]

ENVIRONMENT = {
    "BELLJAR_ACCELERATOR": "tcg",
    "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]',
    "BELLJAR_NETWORK_SLOTS": "1",
    "BELLJAR_POOL": "fixed",
    "BELLJAR_POOL_SIZE": "2",
    # What waits is told of with each heartbeat, a third of this apart.
    "BELLJAR_LEASE_SECONDS": "1.5",
}


@pytest.fixture(scope="module")
def pooled(
    internet: SimulatedInternet, built_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    before = host_state()
    data_dir = tmp_path_factory.mktemp("pooled-networks") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    with serving(data_dir, **ENVIRONMENT) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
    assert host_state() == before


def slots(server: Server) -> list[str]:
    """Namespaces of this server's slots."""
    return sorted(path.name for path in NETNS.glob(f"belljar-*-{server.process.pid}-*"))


def made(server: Server) -> dict[str, int]:
    """When each was made: the names of those that are gone are given again."""
    found = {}
    for name in slots(server):
        with contextlib.suppress(FileNotFoundError):
            found[name] = (NETNS / name).stat().st_ctime_ns
    return found


def has_policy(namespace: str) -> bool:
    """Whether a slot lets anything out."""
    command = ["ip", "netns", "exec", namespace, "nft", "list", "chain", "inet", "belljar", "job_policy"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return "goto admit" in shown or "jump allowlist" in shown


def until_waiting(server: Server, count: int = 4, seconds: float = 120) -> None:
    """Two without a network wait and two with one, and a slot for the next."""
    deadline = time.monotonic() + seconds
    while (waiting := server.http.get("/v1/nodes").json()["nodes"][0]["waiting_clones"]) != count or len(
        slots(server)
    ) != 3:
        assert time.monotonic() < deadline, (waiting, slots(server), server.log.read_text())
        time.sleep(0.2)


def filled(server: Server) -> None:
    """As it is after the first job with a network."""
    assert server.run("print(1)", egress="open")["status"] == "succeeded"
    until_waiting(server)


def from_pool(job: dict[str, Any]) -> bool:
    return bool(job["machine"]["source"] == "pool")


def test_a_waiting_machine_has_its_network_when_its_job_comes(pooled: Server) -> None:
    filled(pooled)
    job = pooled.run(TRY, args=["www.example.org:80", f"{WEB}:443"], egress="www.example.org:80")
    assert printed(pooled, job) == ["www.example.org:80 web", f"{WEB}:443 ConnectionRefusedError"]
    assert from_pool(job)
    assert list(job["timings"]["phases"]) == ["insert", "network", "start", "run"]
    assert (job["network"]["refused_count"], job["network"]["forged_count"]) == (1, 0)


def test_no_slot_that_waits_lets_anything_out(pooled: Server) -> None:
    filled(pooled)
    assert [name for name in slots(pooled) if has_policy(name)] == []
    job = pooled.submit("import time; time.sleep(60)", egress="open")
    pooled.until(job, "running")
    assert len([name for name in slots(pooled) if has_policy(name)]) == 1
    pooled.http.post(f"/v1/jobs/{job}/cancel")
    assert pooled.wait(job)["status"] == "cancelled"


def test_what_one_job_was_allowed_or_sent_no_other_finds(pooled: Server) -> None:
    filled(pooled)
    code = TRY + "print(sorted(line.split()[0] for line in open('/proc/net/tcp').readlines()[1:]))\n"
    places = [f"{WEB}:80", f"{OTHER_WEB}:80", "www.example.org:80"]
    allowed = pooled.run(TRY, args=places, egress=f"{WEB},{OTHER_WEB}:80,www.example.org")
    assert [line.split()[1] for line in printed(pooled, allowed)] == ["web", "other", "web"]
    for _ in range(3):
        until_waiting(pooled)
        job = pooled.run(code, args=places, egress=f"{OTHER_WEB}:80")
        assert from_pool(job)
        *reached, left = printed(pooled, job)
        assert [line.split()[1] for line in reached] == ["ConnectionRefusedError", "other", "gaierror"]
        # Its own connection, just closed, and no other's.
        assert left in ("[]", "['0:']")


def test_a_job_that_sends_nothing_is_charged_nothing(pooled: Server) -> None:
    filled(pooled)
    job = pooled.run("print(1)", egress="open")
    assert from_pool(job)
    assert (job["usage"]["rx_bytes"], job["usage"]["tx_bytes"], job["network"]["refused_count"]) == (0, 0, 0)


def test_machines_that_die_waiting_take_their_slots_along_and_are_replaced(pooled: Server) -> None:
    filled(pooled)  # so that none is just being made
    before = made(pooled)
    killed = pooled.machines()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    while set(killed) & set(pooled.machines()):  # reaped by the server, which knows of it then
        time.sleep(0.02)
    job = pooled.run(TRY, args=[f"{WEB}:80"], egress="open")
    assert (printed(pooled, job), job["attempt"]) == ([f"{WEB}:80 web"], 1)
    deadline = time.monotonic() + 60
    while len(before.items() & made(pooled).items()) > 1:  # the one that waited for no machine
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_bandwidth_of_its_own_is_a_kind_of_its_own(pooled: Server) -> None:
    options = {"egress": "open", "network_mbit_per_second": 3.5}
    deadline = time.monotonic() + 120
    while not from_pool(job := pooled.run(TRY, args=[f"{WEB}:80"], **options)):
        assert printed(pooled, job) == [f"{WEB}:80 web"]
        assert time.monotonic() < deadline
    running = pooled.submit("import time; time.sleep(60)", **options)
    pooled.until(running, "running")
    (name,) = [each for each in slots(pooled) if has_policy(each)]
    command = ["ip", "netns", "exec", name, "tc", "qdisc", "show"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    assert shown.count("rate 3500Kbit") == 2
    pooled.http.post(f"/v1/jobs/{running}/cancel")
    assert pooled.wait(running)["status"] == "cancelled"


def test_many_at_once_each_under_its_own_policy(pooled: Server) -> None:
    policies = {"open": "web tls other", f"{WEB}:443": "tls", f"{OTHER_WEB}": "other", "none": ""}
    places = [f"{WEB}:80", f"{WEB}:443", f"{OTHER_WEB}:80"]
    ids = {}
    for number in range(16):
        egress = list(policies)[number % 4]
        ids[pooled.submit(TRY, args=places, egress=egress, timeout_seconds=100)] = egress
    sources: Counter[str] = Counter()
    for job_id, egress in ids.items():
        job = pooled.wait(job_id, 300)
        reached = [line.split()[1] for line in printed(pooled, job) if not line.endswith("Error")]
        assert " ".join(reached) == policies[egress]
        sources[job["machine"]["source"]] += 1
    assert sources.total() == 16 and sources.keys() <= {"pool", "snapshot"}
