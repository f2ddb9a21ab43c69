"""The main road, over a real server, with curl: upload, run, status, logs, artifacts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.paths import ROOT
from support.running import Server, alive, files_of_run, serving

pytestmark = pytest.mark.vm

EXAMPLES = ROOT / "examples"


def curl(server: Server, path: str, *options: str) -> str:
    header = f"Authorization: {server.http.headers['Authorization']}"
    command = ["curl", "-sS", "--max-time", "120", "-H", header, *options, f"{server.url}{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=130).stdout


def test_upload_run_status_logs_with_curl(server: Server) -> None:
    script = json.loads(curl(server, "/v1/scripts", "-F", f"script=@{EXAMPLES}/system.sh"))
    job_id = json.loads(curl(server, f"/v1/scripts/{script['script_id']}/run", "-X", "POST"))["job_id"]
    job = json.loads(curl(server, f"/v1/jobs/{job_id}?wait=60"))
    assert (job["status"], job["exit_code"], job["language"]) == ("succeeded", 0, "shell")
    logs = curl(server, f"/v1/jobs/{job_id}/logs")
    assert "Linux belljar" in logs and "Mem:" in logs and "/init" in logs
    assert os.uname().release not in logs


def test_python_with_arguments_environment_and_stdin(server: Server) -> None:
    code = "import os, sys\nprint(sys.argv[1:], os.environ['MODE'], sys.stdin.read())\nprint('oops', file=sys.stderr)\n"
    job = server.run(code, args=["a", "b c"], env={"MODE": "fast"}, stdin="héllo")
    assert job["status"] == "succeeded"
    assert server.logs(job, stream="stdout").decode() == "['a', 'b c'] fast héllo\n"
    assert server.logs(job, stream="stderr") == b"oops\n"
    assert job["machine"]["source"] in ("boot", "snapshot")
    assert (job["machine"]["hypervisor"], job["machine"]["accelerator"]) == ("qemu", "tcg")
    assert job["usage"]["cpu_seconds"] > 0 and job["usage"]["max_memory_mb"] > 1


def test_files_in_and_artifacts_out(server: Server) -> None:
    files = {path.name: path.read_text() for path in (EXAMPLES / "report").iterdir()}
    body = {"files": files, "language": "python", "artifacts": ["out/**"]}
    job = server.http.post("/v1/jobs", params={"wait": 60}, json=body).json()
    assert job["status"] == "succeeded", server.logs(job)
    kept = server.http.get(f"/v1/jobs/{job['id']}/artifacts").json()["artifacts"]
    assert sorted(artifact["path"] for artifact in kept) == ["out/report.json", "out/report.txt"]
    report = server.http.get(f"/v1/jobs/{job['id']}/artifacts/out/report.json")
    assert report.headers["content-disposition"].startswith("attachment")
    assert report.json()["Ada"] == {"exams": 2, "mean": 95.5}


def test_following_sees_output_as_it_comes_and_resumes(server: Server) -> None:
    code = "import time\nfor n in range(4):\n    print(n, flush=True)\n    time.sleep(0.3)\n"
    job_id = server.submit(code)
    headers = {"Accept": "text/event-stream"}
    ids, texts = [], []
    with server.http.stream("GET", f"/v1/jobs/{job_id}/logs", params={"follow": True}, headers=headers) as response:
        for line in response.iter_lines():
            if line.startswith("id: "):
                ids.append(line[4:])
            elif line.startswith("data: ") and "text" in line:
                texts.append(json.loads(line[6:])["text"])
                if len(texts) == 1:
                    assert server.wait(job_id, 0)["status"] == "running"
    assert "".join(texts) == "0\n1\n2\n3\n"
    # A print may arrive in more than one piece.
    rest = server.http.get(f"/v1/jobs/{job_id}/logs", headers={**headers, "Last-Event-ID": ids[0]}).text
    pieces = [
        json.loads(line[6:])["text"] for line in rest.splitlines() if line.startswith("data: ") and "text" in line
    ]
    assert "".join(pieces) == "".join(texts[1:]) and "event: end" in rest


def test_cancel_while_it_runs(server: Server) -> None:
    job_id = server.submit("import time\nprint('up', flush=True)\ntime.sleep(100)\n")
    server.until(job_id, "running")
    assert server.http.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert server.wait(job_id)["status"] == "cancelled"
    assert server.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_cancel_at_every_moment_leaves_no_machine(server: Server) -> None:
    ids = []
    for number in range(12):
        ids.append(server.submit("import time; time.sleep(60)"))
        time.sleep(0.03 * number)
        server.http.post(f"/v1/jobs/{ids[-1]}/cancel")
    assert {server.wait(job_id)["status"] for job_id in ids} == {"cancelled"}
    server.until_no_machines()


def test_more_jobs_than_room_all_succeed(server: Server) -> None:
    ids = [server.submit(f"print({number})") for number in range(8)]
    for number, job_id in enumerate(ids):
        assert server.wait(job_id)["status"] == "succeeded"
        assert server.logs(job_id) == b"%d\n" % number


def test_a_killed_machine_is_a_lost_attempt_and_the_job_is_tried_again(server: Server) -> None:
    job_id = server.submit("import time\ntime.sleep(1.5)\nprint('whole')\n")
    server.until(job_id, "running")
    for pid in server.machines():
        os.kill(pid, signal.SIGKILL)
    job = server.wait(job_id)
    assert (job["status"], job["attempt"], len(job["lost_attempts"])) == ("succeeded", 2, 1)
    assert job["lost_attempts"][0]["had_started"] and "SIGKILL" in job["lost_attempts"][0]["message"]
    assert server.logs(job_id, stream="stdout") == b"whole\n"


def test_after_kill_9_nothing_is_left_and_no_job_is_stuck(data_dir: Path) -> None:
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        once = server.submit("import time\ntime.sleep(60)\n", max_attempts=1)
        server.until(once, "running")
        # Long enough to be killed in the middle, on a busy host too.
        twice = server.submit("import time\ntime.sleep(6)\nprint('whole')\n")
        server.until(twice, "running")
        queued = [server.submit("print('later')") for _ in range(3)]
        machines = server.machines()
        assert len(machines) >= 2
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        while any(alive(pid) for pid in machines):
            assert time.monotonic() < deadline, "machines live on without their worker"
            time.sleep(0.05)
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        lost, again = server.wait(once), server.wait(twice)
        assert (lost["status"], lost["error"]["code"], lost["attempt"]) == ("lost", "worker_died", 1)
        assert (again["status"], again["attempt"], len(again["lost_attempts"])) == ("succeeded", 2, 1)
        assert {server.wait(job_id)["status"] for job_id in queued} == {"succeeded"}
        # Those that waited may have been claimed already, and lost with their worker; none of them had begun.
        begun = [lost["had_started"] for job_id in queued for lost in server.wait(job_id)["lost_attempts"]]
        assert not any(begun)
    left = [str(path.relative_to(data_dir)) for path in files_of_run(data_dir)]
    assert [path for path in left if path != "run/worker"] == []


def test_stopping_hands_running_jobs_back(data_dir: Path) -> None:
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        job_id = server.submit("import time\ntime.sleep(2)\nprint('whole')\n")
        server.until(job_id, "running")
    with serving(data_dir, BELLJAR_SNAPSHOTS="off") as server:
        job = server.wait(job_id)
        assert (job["status"], job["attempt"], job["lost_attempts"][0]["code"]) == ("succeeded", 2, "worker_stopped")
