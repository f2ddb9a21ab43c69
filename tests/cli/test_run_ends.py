"""However `belljar run` ends, its job ends with it, nothing is left, and the exit code is true."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.conversation import AGENT, compile_with_agent
from support.paths import TESTS
from support.registered_images import register

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]

#: Says that it has begun, and what becomes of it.
WAITING = """
import os, signal, sys, time
def told(number, frame):
    print("cleanup", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, told)
print("start", flush=True)
open("pid", "w").write(str(os.getpid()))
time.sleep(100)
"""
ENDLESS = """
import os
open("pid", "w").write(str(os.getpid()))
while True:
    os.write(1, b"line\\n" * 1000)
"""
ARTIFACTS = """
import os
os.makedirs("latest", exist_ok=True)
open("latest/model.txt", "w").write("m")
open("top.txt", "w").write("t")
open("weird\\x07name", "w").write("w")
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("agent") / "agent"
    compile_with_agent(binary, AGENT / "main.c", sanitizers=[])
    return binary


class Runs:
    """Starts `belljar run` on agents' processes."""

    def __init__(self, agent: Path, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.work = folder / "work"
        self.work.mkdir()
        register(self.data_dir, "python")
        self._agent = agent
        variables = {name: value for name, value in os.environ.items() if not name.startswith("BELLJAR_")}
        self._env = {**variables, "BELLJAR_DATA_DIR": str(self.data_dir), "PYTHONPATH": str(TESTS)}

    def command(self, script: str, *words: str) -> list[str]:
        (self.folder / "script.py").write_text(script)
        head = [sys.executable, str(TESTS / "support/agent_jobs.py"), str(self._agent), str(self.work)]
        return [*head, str(self.folder / "script.py"), "run", str(self.folder / "script.py"), *words]

    def start(self, script: str, *words: str, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(script, *words), env=self._env, cwd=self.folder, **more)

    def run(self, script: str, *words: str, before: list[str] | None = None) -> subprocess.CompletedProcess[bytes]:
        command = [*(before or []), *self.command(script, *words)]
        return subprocess.run(command, env=self._env, cwd=self.folder, capture_output=True, timeout=60)

    def job_pid(self) -> int:
        """The process id of the script, as this host counts, once it runs."""
        _eventually(lambda: (self.work / "pid").read_text())
        (pid,) = self._scripts()
        return pid

    def _scripts(self) -> list[int]:
        words = [b"-u", os.fsencode(self.folder / "script.py")]
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if path.read_bytes().split(b"\0")[1:3] == words:
                    found.append(int(path.parent.name))
        return found

    def check_nothing_left(self) -> None:
        assert self._scripts() == [], "the script lives on"
        assert list((self.data_dir / "run/embedded").iterdir()) == []


def _eventually(look: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := look():
                return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def runs(agent: Path, tmp_path: Path) -> Iterator[Runs]:
    yield Runs(agent, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job_which_has_its_last_words(runs: Runs, number: signal.Signals) -> None:
    with runs.start(WAITING, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        runs.job_pid()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (b"start\ncleanup\n", b"belljar: cancelled\n", 128 + number)
    runs.check_nothing_left()


def test_what_nohup_ignores_is_ignored(runs: Runs) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with runs.start(WAITING, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignore) as process:
        runs.job_pid()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("both", [False, True])
def test_a_reader_that_goes_away_stops_the_job(runs: Runs, both: bool) -> None:
    """As `belljar run endless.py | head -1`, and the same with `2>&1`."""
    errors = subprocess.STDOUT if both else subprocess.PIPE
    with runs.start(ENDLESS, "--timeout", "100", stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.wait(30) == 141
        assert both or process.stderr.read() == b""  # type: ignore[union-attr]
    runs.check_nothing_left()


def test_a_reader_that_reads_nothing_does_not_hold_up_the_end(runs: Runs) -> None:
    with runs.start(ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        runs.job_pid()
        _eventually(lambda: _waiting_bytes(process.stdout) > 0)  # of one page: it is full with the first write
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (141, 128 + signal.SIGTERM)
    runs.check_nothing_left()


def _waiting_bytes(pipe: Any) -> int:
    import array
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_an_output_that_cannot_be_written_is_one_line(runs: Runs) -> None:
    full = ["/bin/sh", "-c", '"$@" >/dev/full', "sh"]
    closed = ["/bin/sh", "-c", '"$@" >&-', "sh"]
    for before, words, reason in (
        (full, (), "no room left where the output is written to"),
        (full, ("--json",), "cannot write the output: No space left on device"),
        (closed, (), "cannot write the output: Bad file descriptor"),
        (closed, ("--json",), "cannot write the output: Bad file descriptor"),
    ):
        result = runs.run("print(1)", *words, before=before)
        lines = [line for line in result.stderr.decode().splitlines() if line != "1"]
        assert result.returncode == 125 and lines == [line for line in lines if reason in line] and len(lines) == 1
    # Where nothing is written, nothing is wrong.
    result = runs.run("pass", before=closed)
    assert (result.returncode, result.stderr) == (0, b"")


def test_folders_of_killed_runs_are_removed_by_the_next(runs: Runs) -> None:
    with runs.start(WAITING, stdout=subprocess.DEVNULL) as process:
        os.kill(runs.job_pid(), 0)
        process.kill()
    embedded = runs.data_dir / "run/embedded"
    assert len(list(embedded.iterdir())) == 1
    with runs.start(WAITING, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None and living.stdout.readline() == b"start\n"
        assert len(list(embedded.iterdir())) == 1
        assert runs.run("print(1)").returncode == 0
        assert len(list(embedded.iterdir())) == 1  # that of the run that lives
        living.terminate()
    assert list(embedded.iterdir()) == []


# --- artifacts --------------------------------------------------------------------------------------------------------


def test_artifacts_that_did_not_arrive_are_named_with_an_exit_code_of_our_own(runs: Runs) -> None:
    out, elsewhere, victim = runs.folder / "out", runs.folder / "elsewhere", runs.folder / "victim"
    out.mkdir()
    elsewhere.mkdir()
    victim.write_text("precious")
    (out / "latest").symlink_to(elsewhere)
    (out / "top.txt").symlink_to(victim)
    result = runs.run(ARTIFACTS, "--artifacts", "out", "--json")
    lines = sorted(result.stderr.decode().splitlines())
    assert [line.partition(" was not saved")[0] for line in lines] == [
        "belljar: the artifact latest/model.txt",
        "belljar: the artifact top.txt",
        r"belljar: the artifact weird\x07name",
    ]
    assert result.returncode == 125
    assert [each["path"] for each in json.loads(result.stdout)["artifacts_not_kept"]] == [
        "latest/model.txt",
        "top.txt",
        "weird\x07name",
    ]
    assert victim.read_text() == "precious" and list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in out.iterdir()) == ["latest", "top.txt"]
    # The script's own code is more than ours.
    assert runs.run(ARTIFACTS + "raise SystemExit(3)", "--artifacts", "out").returncode == 3


def test_a_place_for_artifacts_is_refused_before_the_job_runs(runs: Runs) -> None:
    (runs.folder / "afile").write_text("")
    (runs.folder / "dangling").symlink_to("nowhere")
    for place in ("afile", "afile/below", "dangling", "/proc/nothing"):
        result = runs.run(ARTIFACTS, "--artifacts", place)
        line = result.stderr.decode()
        assert result.returncode == 125 and line.startswith("belljar: --artifacts: ") and line.count("\n") == 1, line
        assert list(runs.work.iterdir()) == []
    result = runs.run(ARTIFACTS, "--artifact", "*.txt")
    assert result.returncode == 125 and b"--artifacts DIR" in result.stderr


def test_a_full_disk_names_the_artifacts_that_did_not_fit(runs: Runs, small_disk: Path) -> None:
    script = "open('small', 'w').write('s')\nopen('large', 'w').write('l' * 1_000_000)"
    result = runs.run(script, "--artifacts", str(small_disk / "out"))
    assert result.returncode == 125
    assert result.stderr.decode() == "belljar: the artifact large was not saved: no room left on the disk\n"
    assert [path.name for path in (small_disk / "out").iterdir()] == ["small"]
