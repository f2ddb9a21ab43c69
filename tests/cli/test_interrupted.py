"""^C before anything runs, what nobody foresaw, and readers that have gone: never a traceback on the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.command import belljar, complaint, output

pytestmark = pytest.mark.process


def _caught(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal, proc(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    raise AssertionError("no SigCgt")


def _until(process: subprocess.Popen[bytes], number: int, caught: bool) -> None:
    deadline = time.monotonic() + 30
    while _caught(process.pid, number) != caught:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.0005)


def test_an_interrupt_while_belljar_loads_is_silent(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    command = [sys.executable, "-m", "belljar", "run", str(tmp_path / "main.py"), "--data-dir", str(tmp_path / "data")]
    for loaded in (False, True):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            _until(process, signal.SIGINT, True)  # Python has begun
            _until(process, signal.SIGINT, False)  # belljar has taken over
            if loaded:
                _until(process, signal.SIGTERM, True)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (out, err) == (b"", b"") and process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)


@pytest.mark.parametrize("words", [["run", "--help"], ["version"], ["image", "languages"], ["jobs", "--help"]])
def test_nothing_is_printed_for_a_reader_that_has_gone(tmp_path: Path, words: list[str]) -> None:
    command = ["/bin/sh", "-c", '("$@"; echo $? >code) | true', "sh"]
    result = belljar(*words, before=command, data_dir=tmp_path / "data", cwd=tmp_path)
    assert result.stderr == b"" and (tmp_path / "code").read_text() in ("141\n", "0\n")


@pytest.mark.parametrize("words", [["run", "--help"], ["version"], ["image", "ls", "--json"], ["key", "ls"]])
def test_a_full_disk_at_stdout_is_one_line(tmp_path: Path, words: list[str]) -> None:
    command = ["/bin/sh", "-c", '"$@" >/dev/full', "sh"]
    text = complaint(belljar(*words, before=command, data_dir=tmp_path / "data"), 1)
    assert "cannot write the output: No space left on device" in text


def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_a_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys, belljar.images.catalog as catalog\n"
        "from belljar.cli.main import main\n"
        "def fail(*_): raise ZeroDivisionError('first line\\nsecond')\n"
        "catalog.Images.list = fail\n"
        "sys.argv[0] = 'belljar'\n"
        "main()\n"
    )
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "BELLJAR_DATA_DIR": str(tmp_path / "data")}
    log = tmp_path / "state/belljar/last-error.log"
    for words in (["image", "ls"], ["image", "ls", "--debug"]):
        run = subprocess.run([sys.executable, str(broken), *words], env=env, capture_output=True, text=True, timeout=60)
        last = run.stderr.splitlines()[-1]
        assert run.returncode == 1 and last == (
            f"belljar: unexpected error (ZeroDivisionError: first line); the traceback is in {log}"
        )
        assert ("Traceback" in run.stderr) == ("--debug" in words)
    assert "ZeroDivisionError" in log.read_text() and log.stat().st_mode & 0o777 == 0o600


@pytest.mark.root
def test_files_that_cannot_be_read_are_named(everybodys: Path, ordinary: list[str]) -> None:
    (everybodys / "main.py").write_text("print(1)")
    (everybodys / "main.py").chmod(0o600)
    (everybodys / "folder").mkdir(mode=0o700)
    data_dir = everybodys / "data"
    data_dir.mkdir()
    os.chown(data_dir, 65534, 65534)
    for name in ("main.py", "folder", "folder/main.py"):
        text = complaint(belljar("run", name, data_dir=data_dir, cwd=everybodys, before=ordinary), 125)
        assert "cannot read" in text and "Permission denied" in text
    assert output(belljar("version", before=ordinary))


def test_standard_input_is_not_both_script_and_input(tmp_path: Path) -> None:
    words = ["-", "--language", "python", "--stdin", "-"]
    for command, code in (("run", 125), ("submit", 1)):
        text = complaint(belljar(command, *words, data_dir=tmp_path, stdin=b"print(1)"), code)
        assert "standard input cannot be both the script and its input" in text


def test_what_comes_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print(1)")
    endless = ["/bin/sh", "-c", '"$@" </dev/zero', "sh"]
    text = complaint(belljar("run", "-", "--language", "python", before=endless, data_dir=tmp_path / "data"), 125)
    assert "max_upload_mb" in text
    words = ["run", str(tmp_path / "main.py"), "--stdin"]
    for name in ("-", "/dev/zero"):
        text = complaint(belljar(*words, name, before=endless, data_dir=tmp_path / "data"), 125)
        assert "over 16 MB" in text
