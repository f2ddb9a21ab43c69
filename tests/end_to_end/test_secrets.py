"""Jobs with secrets in real machines, from the pool, a snapshot and by boot; then a search of this host for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.command import belljar
from support.running import Server, descendants, serving

pytestmark = pytest.mark.vm

TOKEN = f"tok-{secrets.token_hex(12)}"
CERTIFICATE = (
    f"-----BEGIN-{secrets.token_hex(8)}\nline-{secrets.token_hex(16)}\n-----END-{secrets.token_hex(8)}\n".encode()
)
NAMED = ["TOKEN", {"name": "tls.key", "as": "file", "env": "KEY_FILE"}]
#: What must be nowhere: the values, and each line of one of several lines.
NEEDLES = [TOKEN.encode(), *CERTIFICATE.splitlines()]
DIGEST = hashlib.sha256(TOKEN.encode() + CERTIFICATE).hexdigest()

PROGRAM = """
import hashlib, os, sys, time
token, path = os.environ["TOKEN"], os.environ["KEY_FILE"]
key, status = open(path, "rb").read(), os.stat(path)
mounts = [line.split()[2] for line in open("/proc/mounts") if line.split()[1] == "/run/secrets"]
print(hashlib.sha256(token.encode() + key).hexdigest(), path, oct(status.st_mode), status.st_uid == os.getuid(), mounts)
print(token, key.decode(), flush=True)
for letter in token + "\\n":
    sys.stderr.write(letter)
    sys.stderr.flush()
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""
EXPECTED = f"{DIGEST} /run/secrets/tls.key 0o100400 True ['tmpfs']\n*** ***\n\nready\n".encode()


@pytest.fixture(scope="module")
def server(built_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("secrets") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    environment = {
        "BELLJAR_POOL": "fixed",
        "BELLJAR_POOL_SIZE": "1",
        "BELLJAR_WAITING_PROCESSES": "1",
        "BELLJAR_ACCELERATOR": "tcg",
    }
    with serving(data_dir, **environment) as server:
        for name, value in (("TOKEN", {"value": TOKEN}), ("tls.key", {"value": CERTIFICATE.decode()})):
            assert server.http.put(f"/v1/secrets/{name}", json=value).status_code == 200
        yield server
        assert "Traceback" not in server.log.read_text()


def data_dir_of(server: Server) -> Path:
    return server.log.parent / "data"


def until_waiting(server: Server) -> None:
    deadline = time.monotonic() + 120
    while server.http.get("/v1/nodes").json()["nodes"][0]["waiting_clones"] < 1:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.2)


def holders(needle: bytes, *folders: Path) -> list[str]:
    """Return the files that have these bytes: of the folders, and what this host shows of each process."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for process in Path("/proc").iterdir():
        # This test's own process has the values in its memory only.
        if process.name.isdecimal():
            paths += [process / "cmdline", process / "environ"]
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            if needle in path.read_bytes():
                found.append(str(path))
    return found


def in_memory_of(pid: int) -> set[bytes]:
    """Return the needles that the memory of a process has."""
    found, tail = set(), b""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if not mapping:
                continue
            at, end = (int(each, 16) for each in mapping.groups())
            while at < end:
                try:
                    memory.seek(at)
                    data = memory.read(min(end - at, 4 << 20))
                except (OSError, ValueError, OverflowError):
                    break
                if not data:
                    break
                found |= {needle for needle in NEEDLES if needle in tail + data}
                tail, at = data[-64:], at + len(data)
    return found


def assert_nowhere(server: Server) -> None:
    data_dir = data_dir_of(server)
    assert holders(DIGEST.encode(), data_dir), "the search finds nothing at all"
    for needle in NEEDLES:
        assert holders(needle, data_dir, server.log.parent) == []
        assert needle not in server.log.read_bytes()


def run(server: Server, seconds: str = "0", **options: Any) -> dict[str, Any]:
    job = server.run(PROGRAM, args=[seconds], secrets=NAMED, **options)
    assert (job["status"], job["secret_versions"]) == ("succeeded", {"TOKEN": 1, "tls.key": 1}), job
    assert server.logs(job, stream="stdout") == EXPECTED
    assert server.logs(job, stream="stderr") == b"***\n"
    return job


def test_while_a_job_runs_only_its_own_guest_has_them(server: Server) -> None:
    until_waiting(server)
    job_id = server.submit(PROGRAM, args=["300"], secrets=NAMED)
    deadline = time.monotonic() + 120
    while b"ready" not in server.logs(job_id):
        assert time.monotonic() < deadline, server.wait(job_id, 0)
        time.sleep(0.1)
    job = server.wait(job_id, 0)
    assert job["machine"]["source"] == "pool"
    until_waiting(server)  # a clone that waits beside it
    machines = [pid for pid in server.machines() if "qemu-system" in os.readlink(f"/proc/{pid}/exe")]
    assert len(machines) >= 2
    assert sorted(len(in_memory_of(pid)) for pid in machines) == [*([0] * (len(machines) - 1)), len(NEEDLES)]
    assert_nowhere(server)
    for pid in descendants(server.process.pid):
        with contextlib.suppress(OSError):
            limit = re.search(r"Max core file size +(\d+)", Path(f"/proc/{pid}/limits").read_text())
            assert limit is not None and limit[1] in ("0", "1")
    assert TOKEN not in server.http.get(f"/v1/jobs/{job_id}").text
    server.http.post(f"/v1/jobs/{job_id}/cancel")
    assert server.wait(job_id)["status"] == "cancelled"
    assert server.logs(job_id, stream="stdout") == EXPECTED


def test_from_every_source_they_arrive_and_nothing_keeps_them(server: Server) -> None:
    until_waiting(server)
    assert run(server)["machine"]["source"] == "pool"
    assert run(server, memory_mb=272)["machine"]["source"] == "boot"
    deadline = time.monotonic() + 180
    while run(server, memory_mb=272)["machine"]["source"] != "snapshot":  # once it is made, when nothing runs
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(2)
    until_waiting(server)
    assert_nowhere(server)
    machines = server.machines()
    assert machines and not any(in_memory_of(pid) for pid in machines)


def test_a_run_without_a_server_gets_the_data_folders_secrets(server: Server, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(PROGRAM)
    words = ["run", str(tmp_path / "main.py"), "--secret", "TOKEN", "--secret-file", "tls.key=KEY_FILE", "--", "0"]
    done = belljar(*words, data_dir=data_dir_of(server), timeout=180, BELLJAR_ACCELERATOR="tcg")
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED, b"***\n")
    missing = belljar("run", str(tmp_path / "main.py"), "--secret", "NONE", data_dir=data_dir_of(server))
    assert missing.returncode == 125 and b'no secret "NONE"' in missing.stderr and missing.stderr.count(b"\n") == 1
