"""Which server the commands on a machine find: the one that runs on their data folder, and no impostor."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.cli.flags import ServerFlags
from belljar.cli.server import connect
from belljar.data_dir import is_served
from belljar.local_server import read_address
from support.command import belljar, complaint
from support.foreign_server import foreign_server
from support.running import serving

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"


def test_the_file_of_a_killed_server_misleads_nobody(data_dir: Path) -> None:
    with foreign_server() as impostor:
        with serving(data_dir, "--no-worker") as server:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(30)
        path = data_dir / "run/server.json"
        assert path.exists()
        # Somebody else listens there now: with the address, and on the usual port.
        path.write_text(json.dumps({"url": impostor.url, "pid": 1}))
        assert read_address(data_dir) is None
        port = impostor.url.rpartition(":")[2]
        result = belljar("jobs", "get", "job_1", data_dir=data_dir, BELLJAR_PORT=port)
        assert impostor.requested == ["/v1/jobs/job_1"] and impostor.keys == [None], result
    with serving(data_dir, "--no-worker") as server:
        assert read_address(data_dir) == server.url
    assert not path.exists()


def test_the_key_of_this_machine_goes_through_no_proxy(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with foreign_server() as proxy, serving(data_dir, "--no-worker") as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with connect(ServerFlags(data_dir=data_dir)) as client:
            assert client.jobs() == {"jobs": [], "next_cursor": None}
            assert client.url == server.url
        assert proxy.requested == []


def test_a_file_that_names_another_server_gets_no_key_of_this_machine(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "admin.key").write_text("bj_secret\n")
    (data_dir / "belljar.toml").write_text('server = "http://belljar.example"\n')
    with connect(ServerFlags(data_dir=data_dir)) as client:
        assert "authorization" not in client.transport.http.headers


def test_looking_for_a_server_keeps_none_from_starting(data_dir: Path) -> None:
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_served(data_dir)

    with serving(data_dir, "--no-worker"):
        assert is_served(data_dir)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        with serving(data_dir, "--no-worker") as server:
            assert read_address(data_dir) == server.url
    finally:
        stop.set()
        thread.join()
    assert not is_served(data_dir)


def test_a_key_that_cannot_be_one_is_one_line(data_dir: Path) -> None:
    for key in ("schlüssel", "a\nb"):
        assert "the key contains invalid characters" in complaint(
            belljar("jobs", "ls", "--api-key", key, data_dir=data_dir), 1
        )
