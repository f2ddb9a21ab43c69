"""A server with a pool: jobs from waiting clones, more jobs than clones, clones that die while they wait."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.running import Server, descendants, files_of_run, serving

pytestmark = pytest.mark.vm

POOL = {"BELLJAR_POOL": "fixed", "BELLJAR_POOL_SIZE": "2", "BELLJAR_ACCELERATOR": "tcg"}


@pytest.fixture(scope="module")
def pooled(built_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("pooled") / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(built_images / "images")
    with serving(data_dir, **POOL) as server:
        until_waiting(server, 2)
        yield server
        assert "Traceback" not in server.log.read_text()
    left = [str(path) for path in files_of_run(data_dir) if path.name != "worker"]
    assert left == []


def waiting(server: Server) -> int:
    (node,) = server.http.get("/v1/nodes").json()["nodes"]
    return int(node["waiting_clones"])


def until_waiting(server: Server, count: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while len(server.machines()) != count or waiting(server) != count:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.2)


def test_a_waiting_clone_serves_one_job(pooled: Server) -> None:
    until_waiting(pooled, 2)
    code = "import os, sys; print(sys.argv, os.listdir('/tmp'), sorted(os.listdir('.')), os.getpid())"
    seen = []
    for _ in range(2):
        job = pooled.run(code, args=["x"])
        assert (job["status"], job["machine"]["source"]) == ("succeeded", "pool")
        assert list(job["timings"]["phases"]) == ["insert", "start", "run"]
        seen.append(pooled.logs(job))
    assert set(seen) == {b"['/work/main.py', 'x'] [] ['main.py'] 2\n"}


def test_what_one_job_left_no_other_finds(pooled: Server) -> None:
    until_waiting(pooled, 2)
    write = "import os\nfor path in ('/tmp/mark', '/dev/shm/mark', 'mark'): open(path, 'w').write('x')\n"
    look = "import os\nprint([p for p in ('/tmp/mark', '/dev/shm/mark', 'mark') if os.path.exists(p)])\n"
    assert pooled.run(write)["status"] == "succeeded"
    for _ in range(3):
        assert pooled.logs(pooled.run(look)) == b"[]\n"


def test_a_clone_that_died_waiting_is_nobodys_machine(pooled: Server) -> None:
    until_waiting(pooled, 2)
    for pid in pooled.machines():
        os.kill(pid, signal.SIGKILL)
    job = pooled.run("print('whole')")
    assert (job["status"], job["attempt"], pooled.logs(job)) == ("succeeded", 1, b"whole\n")
    until_waiting(pooled, 2)


def test_sixty_jobs_at_once_on_a_pool_of_two(pooled: Server) -> None:
    until_waiting(pooled, 2)
    before = pooled.descriptors(), len(descendants(pooled.process.pid)), pooled.memory_mb()
    script = pooled.http.post("/v1/scripts", files={"script": ("hello.py", b"import sys; print(sys.argv[1])")}).json()
    ids = {}
    for number in range(60):
        body = {"script_id": script["script_id"], "args": [str(number)], "timeout_seconds": 120}
        response = pooled.http.post("/v1/jobs", json=body)
        assert response.status_code == 202, response.text
        ids[response.json()["id"]] = number
    jobs = [pooled.wait(job_id, 600) for job_id in ids]
    assert Counter((job["status"], job["attempt"]) for job in jobs) == {("succeeded", 1): 60}
    assert all(pooled.logs(job_id) == b"%d\n" % number for job_id, number in ids.items())
    until_waiting(pooled, 2)
    after = pooled.descriptors(), len(descendants(pooled.process.pid)), pooled.memory_mb()
    # Connections to the database and of this client come and go; sixty of anything do not.
    assert after[0] <= before[0] + 24 and after[1] <= before[1] + 4
    assert after[2] < before[2] + 32


def test_another_shape_or_language_gets_its_own(pooled: Server) -> None:
    until_waiting(pooled, 2)
    shell = pooled.run("free -m | awk '/Mem/ {print $2}'", "shell", memory_mb=200)
    large = pooled.run("import os; print(os.sysconf('SC_PHYS_PAGES') >> 8, os.cpu_count())", memory_mb=600, vcpus=2)
    assert 180 < int(pooled.logs(shell)) < 256
    memory_mb, cpus = map(int, pooled.logs(large).split())
    assert 600 < memory_mb < 768 and cpus == 2
