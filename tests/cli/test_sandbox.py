"""`belljar sandbox` against a real server whose sandboxes are processes of the agent, also in a real terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import belljar, belljar_each, complaint, output, parsed
from support.registered_images import register
from support.running import Server, serving
from support.terminal import Terminal, in_terminal

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sandboxes") / "data"
    register(folder, "python")
    return folder


@pytest.fixture(scope="module")
def work(data_dir: Path) -> Path:
    """The working folder of the sandboxes' commands, on this host."""
    folder = data_dir.parent / "work"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path, work: Path) -> Iterator[Server]:
    script = Path(__file__).parent.parent / "support/sandbox_server.py"
    prefix = [sys.executable, str(script), str(work)]
    # The tests' node renews no leases.
    environment = {"PYTHONPATH": str(script.parent.parent), "BELLJAR_LEASE_SECONDS": "600"}
    with serving(data_dir, prefix=prefix, **environment) as server:
        yield server
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def box(server: Server, data_dir: Path) -> str:
    words = ["sandbox", "create", "python", "--env", "A=1", "--label", "a=b", "--lifetime", "30m"]
    return output(belljar(*words, data_dir=data_dir)).strip()


def shell(box: str, data_dir: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of `belljar sandbox shell`."""
    command = [sys.executable, "-m", "belljar", "sandbox", "shell", box, *words]
    return command, {**os.environ, "BELLJAR_DATA_DIR": str(data_dir), "TERM": "xterm"}


def test_sandboxes_are_listed_shown_extended_and_removed(server: Server, data_dir: Path, box: str) -> None:
    other = parsed(belljar("sandbox", "create", "--json", data_dir=data_dir))["id"]
    listed, table, shown, extended, removed, ended = belljar_each(
        ["sandbox", "ls", "--label", "a=b", "--json"],
        ["sandbox", "ls", "--status", "running"],
        ["sandbox", "get", box],
        ["sandbox", "extend", box, "1h", "--json"],
        ["sandbox", "rm", other, "--json"],
        ["sandbox", "exec", other, "--", "true"],
        data_dir=data_dir,
    )
    assert [each["id"] for each in parsed(listed)["sandboxes"]] == [box]
    assert box in output(table) and other in output(table)
    assert "running" in output(shown) and "ends in" in output(shown)
    assert parsed(extended)["id"] == box
    assert parsed(removed)["status"] == "ended"
    assert "ended" in complaint(ended, 1)


def test_a_command_has_its_streams_and_its_exit_code(server: Server, data_dir: Path, box: str) -> None:
    script = 'cat; echo "$A $B" >&2; exit 7'
    words = ["sandbox", "exec", box, "--env", "B=2", "--stdin", "-", "--", "sh", "-c", script]
    done = belljar(*words, data_dir=data_dir, stdin=b"\xff\x00in")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"\xff\x00in", b"1 2\n")
    killed, late, missing, result, started = belljar_each(
        ["sandbox", "exec", box, "--", "sh", "-c", "kill -TERM $$"],
        ["sandbox", "exec", box, "--timeout", "0.2", "--", "sleep", "60"],
        ["sandbox", "exec", box, "--", "no-such-program"],
        ["sandbox", "exec", box, "--json", "--", "echo", "x"],
        ["sandbox", "exec", box, "--background", "--", "sleep", "0"],
        data_dir=data_dir,
    )
    assert (killed.returncode, late.returncode) == (128 + signal.SIGTERM, 124)
    assert "cannot be started: No such file" in complaint(missing, 1)
    assert (parsed(result)["stdout"], parsed(result)["exit_code"]) == ("x\n", 0)
    assert int(output(started)) > 1


def test_files_are_copied_in_both_directions(
    server: Server, data_dir: Path, box: str, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/file").write_bytes(b"data")
    (work / "made").mkdir()
    (work / "made/link").symlink_to("/etc/passwd")
    (work / "made/file").write_text("made")
    there, listed, back, one, both, odd = belljar_each(
        ["sandbox", "cp", str(tmp_path / "folder"), f"{box}:{work}/"],
        ["sandbox", "files", box, str(work / "folder"), "--depth", "2", "--json"],
        ["sandbox", "cp", f"{box}:{work}/made", str(tmp_path / "back")],
        ["sandbox", "cp", f"{box}:{work}/made/file", f"{tmp_path}/"],
        ["sandbox", "cp", f"{box}:a", f"{box}:b"],
        ["sandbox", "cp", str(tmp_path / "missing"), f"{box}:b"],
        data_dir=data_dir,
    )
    assert output(there) == "" and (work / "folder/deep/file").read_bytes() == b"data"
    assert [each["path"] for each in parsed(listed)] == ["deep", "deep/file"]
    assert (back.returncode, back.stderr) == (0, b"belljar: left out 1 links and devices: link\n")
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["file"]
    assert output(one) == "" and (tmp_path / "file").read_text() == "made"
    assert "one path here and one ID:PATH" in complaint(both, 1)
    assert "cannot read" in complaint(odd, 1)


def test_a_shell_is_a_terminal_with_size_keys_and_exit_code(server: Server, data_dir: Path, box: str) -> None:
    with in_terminal(*shell(box, data_dir, "--", "/bin/bash", "--norc"), columns=100, rows=30) as terminal:
        terminal.until(b"bash-")
        assert terminal.is_raw()
        terminal.type(b"stty size; tty; echo $TERM\r")
        answer = terminal.until(b"xterm\r\n")
        assert b"30 100\r\n" in answer and b"/dev/pts/" in answer
        terminal.resize(120, 40)
        terminal.type(b"while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo re''sized\r")
        terminal.until(b"resized\r\n")
        # It says that it runs: a key before that is one for the shell.
        terminal.type(b"sh -c \"echo ru''ns; exec sleep 60\"\r")
        terminal.until(b"runs\r\n")
        terminal.type(b"\x03")
        terminal.until(b"^C")
        terminal.type(b"echo $?\r")
        terminal.until(b"130\r\n")
        terminal.type(b"sh -c \"echo ru''ns; exec sleep 60\"\r")
        terminal.until(b"runs\r\n")
        terminal.type(b"\x1a")
        terminal.until(b"Stopped")
        terminal.type(b"kill %1; wait; cat\r")
        terminal.until(b"cat\r\n")
        terminal.type(b"typed\r\x04echo af''ter\r")
        terminal.until(b"after\r\n")
        terminal.type(b"exit 9\r")
        assert terminal.wait() == 9
        assert not terminal.is_raw()


@pytest.mark.parametrize("close", ["key", "signal"])
def test_a_shell_that_is_closed_leaves_nothing(
    server: Server, data_dir: Path, box: str, work: Path, close: str
) -> None:
    with in_terminal(*shell(box, data_dir, "--", "/bin/sh", "-c", "echo pid $$; sleep 600; true")) as terminal:
        terminal.until(b"pid ")
        pid = int(terminal.until(b"\r\n"))
        if close == "key":
            terminal.type(b"\x1d")
        else:
            os.kill(_child(terminal), signal.SIGTERM)
        code = terminal.wait()
        assert code == (128 + signal.SIGKILL if close == "key" else 128 + signal.SIGTERM)
        assert not terminal.is_raw()
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):
            os.kill(pid, 0)
            signal.sigtimedwait([], 0.01)


def test_a_port_is_forwarded_until_the_command_ends(server: Server, data_dir: Path, box: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "belljar", "sandbox", "ports", box, "--forward", f"0:{port}"]
        environment = {**os.environ, "BELLJAR_DATA_DIR": str(data_dir)}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as forwarding:
            assert forwarding.stderr is not None
            line = forwarding.stderr.readline()
            local = int(line.partition("127.0.0.1:")[2].partition(" ")[0])
            assert f"leads to port {port} of {box}" in line
            with socket.create_connection(("127.0.0.1", local), timeout=30) as client:
                client.sendall(b"hello")
                listener.settimeout(30)
                accepted, _ = listener.accept()
                with accepted:
                    accepted.settimeout(30)
                    assert accepted.recv(5) == b"hello"
                    accepted.sendall(b"back")
                    assert client.recv(4) == b"back"
            forwarding.send_signal(signal.SIGINT)
            assert forwarding.wait(30) == 128 + signal.SIGINT
            assert "Traceback" not in forwarding.stderr.read()
    made = parsed(belljar("sandbox", "ports", box, "--token", "80", "--lifetime", "5m", "--json", data_dir=data_dir))
    assert made["port"] == 80 and made["url"] is None and made["expires_at"]
    plain = belljar("sandbox", "ports", box, "--token", "80", data_dir=data_dir)
    assert output(plain).startswith("bjp_")  # there is no domain, and so no URL
    for wrong in ("x", "0", "1:2:3", "70000"):
        failed = belljar("sandbox", "ports", box, "--forward", wrong, data_dir=data_dir)
        assert "[LOCAL:]PORT" in complaint(failed, 1)


def test_a_shell_needs_a_terminal(server: Server, data_dir: Path, box: str) -> None:
    assert "a terminal is necessary" in complaint(belljar("sandbox", "shell", box, data_dir=data_dir), 1)


def _child(terminal: Terminal) -> int:
    """The command itself, below setsid."""
    pid = terminal.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def test_json_is_what_the_api_says(server: Server, data_dir: Path, box: str) -> None:
    shown = parsed(belljar("sandbox", "get", box, "--json", data_dir=data_dir))
    assert shown == json.loads(server.http.get(f"/v1/sandboxes/{box}").text)
    assert parsed(belljar("sandbox", "ports", box, "--json", data_dir=data_dir)) is not None


def test_code_keeps_its_variables_and_prints_values_errors_and_images(
    server: Server, data_dir: Path, box: str, tmp_path: Path
) -> None:
    plot = "class P:\n  def _repr_png_(self): return b'PNG'\n  def __repr__(self): return 'P!'\nP()"
    first, second, failed, late, other, shown, as_json, listed, wrong = belljar_each(
        ["sandbox", "run", box, "import sys\nx = 41; print('out'); print('err', file=sys.stderr)"],
        ["sandbox", "run", box, "x + 1"],
        ["sandbox", "run", box, "1 / 0"],
        ["sandbox", "run", box, "while True: pass", "--timeout", "0.5"],
        ["sandbox", "run", box, "x", "--context", "nothing"],
        ["sandbox", "run", box, plot, "--save", str(tmp_path / "new")],
        ["sandbox", "run", box, "print('o'); {'a': x}", "--json"],
        ["sandbox", "contexts", box],
        ["sandbox", "run", box, "x", "--context", "python", "--language", "python"],
        data_dir=data_dir,
    )
    assert (first.stdout, first.stderr, first.returncode) == (b"out\n", b"err\n", 0)
    assert output(second) == "42\n"
    assert failed.returncode == 1 and failed.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    assert late.returncode == 124 and b"KeyboardInterrupt" in late.stderr
    assert "no context" in complaint(other, 1)
    assert shown.stdout == b"P! [image/png: --save writes it into a file]\n" and shown.returncode == 0
    assert (tmp_path / "new/1.png").read_bytes() == b"PNG"
    result = parsed(as_json)
    assert result["stdout"] == "o\n" and result["results"][0]["data"]["application/json"] == {"a": 41}
    assert "python" in output(listed) and "idle" in output(listed)
    assert "--language" in complaint(wrong, 1)
