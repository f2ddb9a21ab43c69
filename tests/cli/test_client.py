"""The commands of a client, against a real server that has no worker."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import belljar, belljar_each, complaint, output, parsed
from support.registered_images import register
from support.running import Server, serving

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client") / "data"
    register(folder, "python")
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    with serving(data_dir, "--no-worker") as server:
        yield server


def test_the_server_and_the_key_of_this_machine_are_found(server: Server, data_dir: Path, tmp_path: Path) -> None:
    words = ["submit", "-", "--language", "python", "--label", "a=b"]
    job_id = output(belljar(*words, data_dir=data_dir, stdin=b"print(1)")).strip()
    (tmp_path / "main.py").write_text("print(1)")
    folder = parsed(belljar("submit", str(tmp_path), "--json", "--", "a", "--b", data_dir=data_dir))
    assert (folder["args"], folder["entrypoint"]) == (["a", "--b"], "main.py")
    listed, table, shown, metrics, series, logs, waited, cancelled, ended = belljar_each(
        ["jobs", "ls", "--label", "a=b", "--json"],
        ["jobs", "ls", "--status", "queued"],
        ["jobs", "get", job_id],
        ["jobs", "metrics", job_id],
        ["jobs", "metrics", job_id, "--json"],
        ["logs", job_id],
        ["jobs", "wait", job_id, "--timeout", "0.1", "--json"],
        ["jobs", "cancel", job_id, "--json"],
        ["jobs", "wait", job_id, "--json"],
        data_dir=data_dir,
    )
    (job,) = parsed(listed)["jobs"]
    assert (job["id"], job["status"], job["entrypoint"]) == (job_id, "queued", "main.py")
    assert job_id in output(table) and folder["id"] in output(table)
    assert "queued" in output(shown)
    assert "no measurements" in output(metrics) and parsed(series)["seconds"] == []
    assert output(logs) == ""
    assert waited.returncode == 124 and b"is still queued" in waited.stderr
    assert parsed(cancelled)["status"] == parsed(ended)["status"] == "cancelled"


def test_what_the_server_refuses_is_one_line(server: Server, data_dir: Path, tmp_path: Path) -> None:
    with (tmp_path / "large.py").open("wb") as file:
        file.truncate(60 << 20)
    refused = {
        "there is no job 'job_x' in this project": ["jobs", "get", "job_x"],
        "there is no job 'job_y'": ["logs", "job_y", "-f"],
        "status: ": ["jobs", "ls", "--status", "asleep"],
        "this is not a key of belljar": ["jobs", "ls", "--api-key", "wrong"],
        "max_upload_mb": ["submit", "large.py"],
        "unknown path /elsewhere/v1/jobs": ["jobs", "ls", "--server", f"{server.url}/elsewhere"],
    }
    results = belljar_each(*refused.values(), data_dir=data_dir, cwd=tmp_path)
    for expected, result in zip(refused, results, strict=True):
        assert expected in complaint(result, 1)


def test_the_key_of_this_machine_is_shown_to_no_other(server: Server, data_dir: Path) -> None:
    from belljar.cli.flags import ServerFlags
    from belljar.cli.server import connect

    for server, shown in (("http://127.0.0.1:1", True), ("localhost:1", True), ("http://belljar.example", False)):
        with connect(ServerFlags(server=server, data_dir=data_dir)) as client:
            assert ("authorization" in client.transport.http.headers) == shown


def test_a_second_worker_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as worker:
        text = complaint(belljar("worker", data_dir=tmp_path / "data"), 1)
        assert "another belljar works on" in text and "--data-dir" in text
        assert worker.process.poll() is None


def test_a_server_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--auth", "off") as server:
        assert server.http.get("/v1/jobs").status_code == 200
        assert server.http.get("/v1/jobs", headers={"Origin": "http://evil.example"}).status_code == 403
        assert (tmp_path / "data/run/server.json").exists()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()
    assert not (tmp_path / "data/run/server.json").exists()
