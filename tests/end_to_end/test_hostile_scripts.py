"""Scripts that misbehave, each in a real machine: the job ends in the right state and the server is unharmed."""

from __future__ import annotations

import json

import pytest

from support.running import Server

pytestmark = pytest.mark.vm


def test_fork_bomb(server: Server) -> None:
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    job = server.run(bomb, timeout_seconds=4)
    assert (job["status"], job["error"]["code"], job["attempt"]) == ("timed_out", "timed_out", 1)


def test_memory_is_bounded_and_reported(server: Server) -> None:
    job = server.run("kept = []\nwhile True:\n    kept.append(b'x' * (1 << 20))\n", memory_mb=128)
    assert (job["status"], job["error"]["code"]) == ("failed", "out_of_memory")
    assert "128 MB" in job["error"]["message"]


@pytest.mark.parametrize("disk_mb", [None, 64])
def test_disk_is_bounded(server: Server, disk_mb: int | None) -> None:
    code = "with open('/work/full', 'wb') as file:\n    while True:\n        file.write(b'x' * (1 << 20))\n"
    job = server.run(code, disk_mb=disk_mb)
    assert (job["status"], job["exit_code"]) == ("failed", 1)
    assert b"No space left on device" in server.logs(job, stream="stderr")


def test_flood_is_cut_and_memory_stays_flat(server: Server) -> None:
    before = server.memory_mb()
    job = server.run("head -c 300M /dev/zero; echo done >&2", "shell", timeout_seconds=120)
    assert (job["status"], job["exit_code"]) == ("succeeded", 0)
    assert job["logs"]["stdout_truncated"]
    assert server.logs(job, stream="stderr") == b"done\n"
    assert len(server.logs(job, stream="stdout")) < 17 << 20
    assert server.memory_mb() - before < 64


def test_a_script_that_ignores_sigterm_is_killed(server: Server) -> None:
    code = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)\n"
    job = server.run(code, timeout_seconds=1)
    assert (job["status"], job["signal"]) == ("timed_out", "SIGKILL")


def test_closing_stdout_hides_nothing(server: Server) -> None:
    job = server.run("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(0.2)\nos._exit(3)\n")
    assert (job["status"], job["exit_code"]) == ("failed", 3)


def test_invalid_utf8_arrives_as_it_was_written(server: Server) -> None:
    job = server.run("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe caf\\xc3\\xa9\\n')\n")
    assert server.logs(job) == b"\xff\xfe caf\xc3\xa9\n"
    response = server.http.get(f"/v1/jobs/{job['id']}/logs", headers={"Accept": "text/event-stream"})
    text = "".join(json.loads(line[6:]).get("text", "") for line in response.text.splitlines() if line[:5] == "data:")
    assert text == "\ufffd\ufffd café\n"


def test_a_line_of_ten_megabytes(server: Server) -> None:
    job = server.run("print('x' * 10_000_000)")
    assert job["status"] == "succeeded"
    assert server.logs(job) == b"x" * 10_000_000 + b"\n"


def test_children_do_not_outlive_the_script(server: Server) -> None:
    job = server.run("(trap '' TERM HUP; sleep 1000) & echo started", "shell")
    assert (job["status"], server.logs(job)) == ("succeeded", b"started\n")
    server.until_no_machines()


def test_the_job_is_nobody_in_its_machine(server: Server) -> None:
    code = """
id -u
ls /sys/class/net
: >/job/x || echo "script disk: read-only"
: >/etc/x || echo "root: not mine"
mount -t tmpfs none /tmp 2>/dev/null || echo "mount: refused"
kill -9 1 2>/dev/null; echo "still here"
dd if=/dev/vda of=/dev/null count=1 2>/dev/null || echo "disks: none in sight"
"""
    job = server.run(code, "shell")
    lines = server.logs(job, stream="stdout").decode().splitlines()
    expected = ["1000", "lo", "script disk: read-only", "root: not mine", "mount: refused", "still here"]
    assert lines == [*expected, "disks: none in sight"]
