"""Many jobs with networks through a server that is killed half-way, and what is then left of them on the host."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.internet import NAMESERVER, WEB
from support.running import Server, serving

#: Policy → what the job connects to. The name is one of the internet's.
POLICIES: dict[str, str] = {"open": WEB, f"{WEB}:80": WEB, "www.example.org:80": "www.example.org"}
CODE = 'exec 3<>"/dev/tcp/$1/80" && tail -n 1 <&3'


def exactly() -> dict[str, str]:
    """The host's networking to the letter: whatever anybody has there."""
    commands = {
        "nft list ruleset": ["nft", "list", "ruleset"],
        "ip netns": ["ip", "netns"],
        "ip link": ["ip", "link"],
        "ip rule": ["ip", "rule"],
        "ip route": ["ip", "route", "show", "table", "all"],
        "forwarding": ["sysctl", "net.ipv4.ip_forward"],
    }
    return {
        name: subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        for name, command in commands.items()
    }


@dataclass
class Ended:
    """How the jobs ended, and the host's networking at each point."""

    #: (status, where the machine came from) → how many.
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Jobs whose machines the kill took along.
    interrupted: int = 0
    seconds: float = 0.0
    before: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)


def run_jobs(data_dir: Path, jobs: int, **environment: str) -> Ended:
    """That many jobs, half of them asked of a server that is killed while it works on them, the rest of the next one.

    Raises AssertionError for a job that ends wrongly. `data_dir` has the image shell.
    """
    environment = {"BELLJAR_ACCELERATOR": "tcg", "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]', **environment}
    ended, started = Ended(before=exactly()), time.monotonic()
    with serving(data_dir, **environment) as server:
        ids = [submitted(server, number) for number in range(jobs // 2)]
        until_ended(server, len(ids) * 2 // 3)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        ended.killed = exactly()
    with serving(data_dir, **environment) as server:
        ids += [submitted(server, number) for number in range(jobs // 2, jobs)]
        for job_id in ids:
            note(ended, server, server.wait(job_id, 170))
    ended.seconds, ended.after = time.monotonic() - started, exactly()
    return ended


def submitted(server: Server, number: int) -> str:
    egress, host = list(POLICIES.items())[number % len(POLICIES)]
    return server.submit(CODE, "shell", args=[host], egress=egress, max_attempts=3, timeout_seconds=120)


def until_ended(server: Server, count: int, seconds: float = 900) -> None:
    """Wait until so many jobs have ended and another runs."""
    deadline = time.monotonic() + seconds
    while True:
        running = server.http.get("/v1/jobs", params={"status": "running", "limit": 1}).json()["jobs"]
        if running and ended_count(server) >= count:
            return
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.1)


def ended_count(server: Server) -> int:
    found, cursor = 0, None
    while True:
        query = {"status": "succeeded", "limit": 200} | ({"cursor": cursor} if cursor else {})
        page = server.http.get("/v1/jobs", params=query).json()
        found += len(page["jobs"])
        cursor = page.get("next_cursor")
        if not cursor:
            return found


def note(ended: Ended, server: Server, job: dict[str, Any]) -> None:
    assert job["status"] == "succeeded", (job, server.logs(job, stream="all"))
    assert server.logs(job, stream="stdout") == b"web", job
    ended.counts[job["status"], job["machine"]["source"]] += 1
    ended.interrupted += job["attempt"] > 1
