"""A real server in a process of its own, and what it started on this host."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

#: A Python script that connects to each of its arguments and prints what came of it.
TRY = """
import socket, sys
for place in sys.argv[1:]:
    host, _, port = place.partition(":")
    try:
        with socket.create_connection((host, int(port)), 10) as connection:
            print(place, connection.makefile("rb").read().partition(b"\\r\\n\\r\\n")[2].decode())
    except OSError as error:
        print(place, type(error).__name__)
"""


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    http: httpx.Client
    url: str
    log: Path

    def run(self, code: str | None, language: str = "python", wait: int = 120, **options: Any) -> dict[str, Any]:
        """A job, submitted and waited for; without code one of `files`."""
        body = {"code": code, "language": language, **options}
        response = self.http.post("/v1/jobs", params={"wait": wait}, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def submit(self, code: str, language: str = "python", **options: Any) -> str:
        response = self.http.post("/v1/jobs", json={"code": code, "language": language, **options})
        assert response.status_code == 202, response.text
        return response.json()["id"]

    def wait(self, job_id: str, seconds: int = 120) -> dict[str, Any]:
        """Wait for a job's end; returns the job as it is when the time is up. Each request takes a minute at most."""
        while True:
            job: dict[str, Any] = self.http.get(f"/v1/jobs/{job_id}", params={"wait": min(seconds, 60)}).json()
            seconds -= 60
            if seconds <= 0 or job["finished_at"]:
                return job

    def until(self, job_id: str, status: str, seconds: float = 60) -> dict[str, Any]:
        """Wait for a status that is not the last."""
        deadline = time.monotonic() + seconds
        while (job := self.wait(job_id, 0))["status"] != status:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def logs(self, job: dict[str, Any] | str, **query: Any) -> bytes:
        job_id = job if isinstance(job, str) else job["id"]
        return self.http.get(f"/v1/jobs/{job_id}/logs", params=query).content

    def memory_mb(self) -> int:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{self.process.pid}/smaps_rollup").read_text(), re.M)
        assert found
        return int(found[1]) // 1024

    def until_no_machines(self, seconds: float = 60) -> None:
        """Wait until no hypervisor is left: an ended job's, and one that is frozen for the jobs to come."""
        deadline = time.monotonic() + seconds
        while pids := self.machines():
            assert time.monotonic() < deadline, pids
            time.sleep(0.05)

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def machines(self) -> list[int]:
        """Process ids of the hypervisors that this server started."""
        return [pid for pid in descendants(self.process.pid) if "qemu" in name_of(pid)]


def files_of_run(data_dir: Path) -> list[Path]:
    """What a server keeps in its data folder while it runs, but for the files that are locked and stay."""
    return [path for path in (data_dir / "run").rglob("*") if path.is_file() and path.suffix != ".lock"]


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
        for task in Path(f"/proc/{pid}/task").iterdir():
            if task.name != str(pid):
                for child in (task / "children").read_text().split():
                    found += [int(child), *descendants(int(child))]
    return found


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@contextmanager
def serving(data_dir: Path, *options: str, prefix: Sequence[str] = (), **environment: str) -> Iterator[Server]:
    """`belljar serve` on a free port; stopped at the end, with nothing left of it. `prefix`: what makes way for it.

    No hypervisor waits for a snapshot unless `environment` says so: the tests count machines.
    """
    environment.setdefault("BELLJAR_WAITING_PROCESSES", "0")
    log = data_dir.parent / f"serve-{time.monotonic_ns()}.log"
    command = [*prefix, sys.executable, "-m", "belljar", "serve", "--port", "0", "--data-dir", str(data_dir), *options]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stderr=stderr, env={**os.environ, **environment})
    try:
        url = _address(process, log)
        key = data_dir / "admin.key"
        headers = {"Authorization": f"Bearer {key.read_text().strip()}"} if key.exists() else {}
        with httpx.Client(base_url=url, headers=headers, timeout=180) as http:
            yield Server(process, http, url, log)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = re.search(r"serves on (http://\S+),", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(f"no server: {log.read_text()}")
