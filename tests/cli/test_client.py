"""The commands of a client, against a real server that has no worker."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command import belljar, complaint, output, parsed
from images.registered import register
from system.running import Server, serving

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "data"
    register(folder, "python")
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    with serving(data_dir, "--no-worker") as server:
        yield server


def run(data_dir: Path, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return belljar(*words, data_dir=data_dir, stdin=stdin)


def test_the_server_and_the_key_of_this_machine_are_found(server: Server, data_dir: Path) -> None:
    job_id = output(run(data_dir, "submit", "-", "--language", "python", "--label", "a=b", stdin=b"print(1)")).strip()
    (job,) = parsed(run(data_dir, "jobs", "ls", "--label", "a=b", "--json"))["jobs"]
    assert (job["id"], job["status"], job["entrypoint"]) == (job_id, "queued", "main.py")
    assert job_id in output(run(data_dir, "jobs", "ls", "--status", "queued"))
    assert "queued" in output(run(data_dir, "jobs", "get", job_id))
    assert output(run(data_dir, "logs", job_id)) == ""


def test_waiting_no_longer_than_asked_and_cancelling(server: Server, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    job = parsed(run(data_dir, "submit", str(tmp_path), "--json", "--", "a", "--b"))
    assert (job["args"], job["entrypoint"]) == (["a", "--b"], "main.py")
    waited = run(data_dir, "jobs", "wait", job["id"], "--timeout", "0.1", "--json")
    assert waited.returncode == 124 and b"is still queued" in waited.stderr
    assert parsed(run(data_dir, "jobs", "cancel", job["id"], "--json"))["status"] == "cancelled"
    assert parsed(run(data_dir, "jobs", "wait", job["id"], "--json"))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["jobs", "get", "job_x"], "there is no job 'job_x' in this project"),
        (["logs", "job_x", "-f"], "there is no job 'job_x'"),
        (["jobs", "ls", "--status", "asleep"], "status: "),
        (["jobs", "ls", "--api-key", "wrong"], "the key is not known here"),
        (["submit", "{large}"], "max_upload_mb"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
def test_what_the_server_refuses_is_one_line(
    server: Server, data_dir: Path, tmp_path: Path, words: list[str], expected: str
) -> None:
    large = tmp_path / "large.py"
    with large.open("wb") as file:
        file.truncate(60 << 20)
    given = [word.format(large=large) for word in words]
    assert expected in complaint(run(data_dir, *given), 1)


def test_a_server_that_is_none_is_told(server: Server, data_dir: Path) -> None:
    words = ["jobs", "ls", "--server", f"{server.url}/elsewhere"]
    assert "there is nothing at /elsewhere/v1/jobs" in complaint(run(data_dir, *words), 1)


def test_the_key_of_this_machine_is_shown_to_no_other(data_dir: Path) -> None:
    from belljar.cli.server import connect

    for server, shown in (("http://127.0.0.1:1", True), ("localhost:1", True), ("http://belljar.example", False)):
        with connect(server, None, data_dir) as client:
            assert ("authorization" in client._http.headers) == shown


def test_a_second_worker_on_the_same_folder_is_refused(server: Server, data_dir: Path) -> None:
    with serving(data_dir) as worker:
        text = complaint(run(data_dir, "worker"), 1)
        assert "another belljar works on" in text and "--data-dir" in text
        assert worker.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "data", "--auth", "off") as server:
        assert server.http.get("/v1/jobs").status_code == 200
        assert server.http.get("/v1/jobs", headers={"Origin": "http://evil.example"}).status_code == 403
        os.kill(server.process.pid, number)
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()
    assert not (tmp_path / "data/run/server.json").exists()
