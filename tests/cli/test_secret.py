"""`belljar secret`, as processes: where a value may come from, and what is printed."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from belljar.cli.flags import JobFlags
from support.command import belljar
from support.running import serving

pytestmark = pytest.mark.process

VALUE = b"hunter2-hunter2"


def stored(data_dir: Path, *options: str) -> list[dict[str, object]]:
    listing: list[dict[str, object]] = json.loads(belljar("secret", "ls", "--json", *options, data_dir=data_dir).stdout)
    return listing


def test_values_come_from_stdin_and_files_and_are_never_shown(tmp_path: Path) -> None:
    data_dir, file = tmp_path / "data", tmp_path / "value"
    file.write_bytes(b"\0" + VALUE + b"\n")
    done = [
        belljar("secret", "set", "TOKEN", data_dir=data_dir, stdin=VALUE + b"\n"),
        belljar("secret", "set", "TOKEN", data_dir=data_dir, stdin=VALUE + b"\r\n"),
        belljar("secret", "set", "blob.bin", "--file", str(file), "--json", data_dir=data_dir),
        belljar("secret", "set", "PIN", data_dir=data_dir, stdin=b"123\n"),
        belljar("secret", "ls", data_dir=data_dir),
    ]
    assert [each.returncode for each in done] == [0] * len(done), done
    assert done[1].stdout == b"TOKEN version 2\n" and json.loads(done[2].stdout)["masked"] is True
    assert b"not masked" in done[3].stderr and b"not masked" not in done[0].stderr
    for each in done:
        assert VALUE not in each.stdout and VALUE not in each.stderr
    assert [(each["name"], each["version"]) for each in stored(data_dir)] == [("PIN", 1), ("TOKEN", 2), ("blob.bin", 1)]
    assert all(VALUE not in path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    assert (data_dir / "secrets.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "stdin", "reason"),
    [
        (["TOKEN", "hunter2"], b"", b"list of processes"),
        (["TOKEN", "hunter2", "more"], b"", b"list of processes"),
        (["TOKEN"], b"", b"empty"),
        (["TOKEN"], b"\n", b"empty"),
        (["TOKEN"], b"x" * (64 * 1024 + 1), b"over 65536 bytes"),
        (["TOKEN", "--file", "/no/such"], b"", b"No such file"),
        (["a b"], b"value", b"invalid name"),
        (["TOKEN", "--project", "none"], b"value", b"none"),
    ],
)
def test_what_cannot_be_set_is_refused_in_one_line(
    tmp_path: Path, arguments: list[str], stdin: bytes, reason: bytes
) -> None:
    done = belljar("secret", "set", *arguments, data_dir=tmp_path / "data", stdin=stdin)
    assert done.returncode == 1 and reason in done.stderr and done.stderr.count(b"\n") == 1, done
    assert b"hunter2" not in done.stderr + done.stdout
    assert stored(tmp_path / "data") == []


def prompted(data_dir: Path, *answers: bytes) -> tuple[int, bytes]:
    """What a person sees who sets a secret at a terminal, and the exit code."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "belljar", "secret", "set", "TOKEN", "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    try:
        for answer in answers:
            while not seen.endswith(b": "):
                seen += os.read(ours, 1000)
            time.sleep(0.1)  # until getpass has switched the echo off
            os.write(ours, answer + b"\n")
            seen += os.read(ours, 1)
        while piece := os.read(ours, 1000):
            seen += piece
    except OSError:
        pass  # the terminal's other end is closed
    finally:
        os.close(ours)
    return process.wait(30), seen


def test_at_a_terminal_it_is_asked_twice_without_an_echo(tmp_path: Path) -> None:
    code, seen = prompted(tmp_path / "data", VALUE, VALUE)
    assert (code, seen.count(b": ")) == (0, 2) and b"TOKEN version 1" in seen and VALUE not in seen
    code, seen = prompted(tmp_path / "data", VALUE, b"other")
    assert code == 1 and b"differ" in seen and VALUE not in seen
    assert [each["version"] for each in stored(tmp_path / "data")] == [1]


def test_a_rotation_and_a_removal(tmp_path: Path) -> None:
    belljar("secret", "set", "TOKEN", data_dir=tmp_path, stdin=VALUE)
    before = (tmp_path / "secrets.key").read_bytes()
    done = belljar("secret", "rotate-key", "--json", data_dir=tmp_path)
    assert json.loads(done.stdout)["resealed"] == 1 and (tmp_path / "secrets.key").read_bytes() != before
    assert belljar("secret", "rm", "TOKEN", data_dir=tmp_path).returncode == 0
    again = belljar("secret", "rm", "TOKEN", data_dir=tmp_path)
    assert again.returncode == 1 and b"belljar secret ls" in again.stderr


def test_a_server_and_the_data_folder_have_the_same_secrets(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, "--no-worker") as server:
        at = ["--server", server.url, "--api-key", (data_dir / "admin.key").read_text().strip()]
        assert belljar("secret", "set", "TOKEN", *at, data_dir=data_dir, stdin=VALUE).stdout == b"TOKEN version 1\n"
        assert belljar("secret", "set", "TOKEN", data_dir=data_dir, stdin=VALUE).stdout == b"TOKEN version 2\n"
        assert stored(data_dir, *at) == stored(data_dir) != []
        assert belljar("secret", "rotate-key", data_dir=data_dir).returncode == 0
        assert belljar("secret", "set", "TOKEN", *at, data_dir=data_dir, stdin=VALUE).stdout == b"TOKEN version 3\n"
        assert belljar("secret", "rm", "TOKEN", *at, data_dir=data_dir).returncode == 0
        assert stored(data_dir) == []
        assert VALUE not in server.log.read_bytes()
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        assert "Max core file size        1                    1 " in limits


def test_doctor_tells_whether_secrets_can_be_opened(tmp_path: Path) -> None:
    def check() -> dict[str, str] | None:
        checks = json.loads(belljar("doctor", "--json", data_dir=tmp_path).stdout)
        return next((each for each in checks if each["name"] == "secrets"), None)

    belljar("secret", "set", "TOKEN", data_dir=tmp_path, stdin=VALUE)
    found = check()
    assert found is not None and found["level"] == "ok"
    (tmp_path / "secrets.key").unlink()
    found = check()
    assert found is not None and found["level"] == "fail" and "restore" in found["message"]
    assert not (tmp_path / "secrets.key").exists()


def test_flags_name_secrets_as_the_http_api_does() -> None:
    flags = JobFlags(secret=["A", "B=C"], secret_file=["D", "E=F"], mask=False)
    options = flags.job_options(None, None)
    assert options["secrets"] == [
        {"name": "A", "as": "env"},
        {"name": "B", "as": "env", "env": "C"},
        {"name": "D", "as": "file"},
        {"name": "E", "as": "file", "env": "F"},
    ]
    assert options["mask_secrets"] is False
    assert not JobFlags().job_options(None, None).keys() & {"secrets", "mask_secrets"}
