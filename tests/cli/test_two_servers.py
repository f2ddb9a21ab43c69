"""Two servers on one data folder: the second is refused, and the first does not notice."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from belljar.local_server import read_address, read_admin_key
from support.command import belljar, complaint, output
from support.registered_images import register

pytestmark = pytest.mark.process


@contextmanager
def server(data_dir: Path, *options: str) -> Iterator[str]:
    """`belljar serve` in a process of its own; yields its URL."""
    register(data_dir, "python")
    process = subprocess.Popen(
        [sys.executable, "-m", "belljar", "serve", "--port", "0", "--data-dir", str(data_dir), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "BELLJAR_POOL": "off", "BELLJAR_SNAPSHOTS": "off"},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "belljar serves on" in line, line
        yield next(word.rstrip(",") for word in line.split() if word.startswith("http"))
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.parametrize("first", [[], ["--no-worker"]])
def test_the_second_is_refused_and_the_first_goes_on(tmp_path: Path, first: list[str]) -> None:
    folder = tmp_path / "data"
    with server(folder, *first) as url:
        before = json.loads((folder / "run/server.json").read_text())
        assert before["url"] == url == read_address(folder)
        assert stat.S_IMODE((folder / "run/server.json").stat().st_mode) == 0o600
        for options in ([], ["--no-worker"]):
            text = complaint(belljar("serve", "--port", "0", *options, data_dir=folder), 1)
            assert f"another belljar serves {folder} already; stop it, or set --data-dir" in text
        assert json.loads((folder / "run/server.json").read_text()) == before
        headers = {"Authorization": f"Bearer {read_admin_key(folder)}"}
        body = {"code": "print(1)", "language": "python"}
        assert httpx.post(f"{url}/v1/jobs", headers=headers, json=body, timeout=30).status_code == 202
        assert output(belljar("jobs", "ls", data_dir=folder)).count("queued") <= 1
    assert read_address(folder) is None


@pytest.mark.parametrize("command", [["serve", "--port", "0", "--no-worker"], ["worker"]])
def test_a_server_that_was_started_to_ignore_signals_ends_at_sigterm(tmp_path: Path, command: list[str]) -> None:
    ignoring = (
        "import os, signal, sys; sys.argv.pop(0); [signal.signal(number, signal.SIG_IGN) for number in (1, 2, 15)]; "
    )
    options = ["-m", "belljar", *command, "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{ignoring}os.execv(sys.executable, sys.argv)", sys.executable, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        assert "data in" in process.stderr.readline()
        for number in (signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_key_that_was_revoked_on_this_machine_is_refused_when_the_command_ends(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with server(folder, "--no-worker") as url:
        made = json.loads(output(belljar("key", "create", "ci", "--json", data_dir=folder)))
        headers = {"Authorization": f"Bearer {made['secret']}"}
        for _ in range(3):
            assert httpx.get(f"{url}/v1/jobs", headers=headers).status_code == 200
        output(belljar("key", "revoke", made["id"], data_dir=folder))
        assert httpx.get(f"{url}/v1/jobs", headers=headers).status_code == 401
