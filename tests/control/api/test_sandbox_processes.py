"""Commands in a sandbox over HTTP: results, streams, background commands, signals, input, timeouts, bad requests."""

from __future__ import annotations

import asyncio
import base64
import json
import os

import pytest

from belljar.control.sandboxes import request as limits
from control.api.sandbox_calls import OneSandbox, SandboxApi, events_of, text_of
from support.served import problem

pytestmark = pytest.mark.process


async def is_gone(pid: int) -> bool:
    """Wait up to 10 s for a process of this host to be gone."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_command_returns_its_streams_and_its_exit(box: OneSandbox) -> None:
    result = await box.exec('cat; echo "$A $B" >&2; exit 3', stdin="in ü", env={"B": "2"})
    assert (result["stdout"], result["stderr"]) == ("in ü", "1 2\n")
    assert (result["exit_code"], result["signal"], result["timed_out"]) == (3, None, False)
    assert result["duration_ms"] > 0 and result["pid"] > 0
    assert not result["stdout_truncated"] and not result["stderr_truncated"]
    killed = await box.exec("kill -TERM $$")
    assert (killed["exit_code"], killed["signal"]) == (None, "SIGTERM")
    cwd = await box.http.post(f"{box.url}/exec", json={"args": ["pwd"], "cwd": "/usr"})
    assert cwd.json()["stdout"] == "/usr\n"


async def test_bytes_that_are_no_text_come_in_base64(box: OneSandbox) -> None:
    sent = bytes(range(256))
    body = {"args": ["cat"], "stdin_base64": base64.b64encode(sent).decode(), "encoding": "base64"}
    result = (await box.http.post(f"{box.url}/exec", json=body)).json()
    assert base64.b64decode(result["stdout"]) == sent
    large = b"\xff" * 200_000
    body["stdin_base64"] = base64.b64encode(large).decode()
    result = (await box.http.post(f"{box.url}/exec", json=body)).json()
    assert base64.b64decode(result["stdout"]) == large


async def test_output_beyond_the_limit_is_dropped_and_marked(box: OneSandbox) -> None:
    result = await box.exec("head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2", max_output_bytes=1000)
    assert (result["stdout"], result["stdout_truncated"]) == ("x" * 1000, True)
    assert (result["stderr"], result["stderr_truncated"]) == ("end\n", False)


async def test_a_stream_has_the_start_the_output_and_the_exit(box: OneSandbox) -> None:
    events = await box.stream("printf 'a\\303'; sleep 0.1; printf '\\274b'; echo err >&2; exit 4")
    assert [events[0][0], events[-1][0]] == ["started", "exit"]
    assert (text_of(events, "stdout"), text_of(events, "stderr")) == ("aüb", "err\n")
    assert events[-1][1]["exit_code"] == 4
    assert events[0][1]["pid"] > 0
    many = await box.stream("head -c 2000000 /dev/zero | tr '\\0' y")
    assert len(text_of(many, "stdout")) == 2_000_000
    assert events_of(": still here\n\n") == []


async def test_a_stream_of_a_machine_that_dies_ends_with_an_error_and_without_an_exit(
    sandboxes: SandboxApi, box: OneSandbox
) -> None:
    async def kill() -> None:
        await asyncio.sleep(0.3)
        sandboxes.node.machines[box.id][1].kill()

    killing = asyncio.create_task(kill())
    events = await box.broken_stream(sandboxes.served, "echo one; sleep 100")
    await killing
    assert events[-1][0] == "error" and events[-1][1]["code"] in ("sandbox_ended", "stream_broken")
    assert "exit" not in [name for name, _ in events]
    for _ in range(100):
        if (found := (await box.http.get(box.url)).json())["status"] == "lost":
            break
        await asyncio.sleep(0.05)
    assert found["end"]["reason"] == "machine_died"
    document = problem(await box.http.post(f"{box.url}/exec", json={"command": "true"}), 409, "sandbox_ended")
    assert document["reason"] == "machine_died"


async def test_a_background_command_is_listed_waited_for_and_read_late(box: OneSandbox) -> None:
    started = await box.exec("echo out; read line; echo got $line; exit 5", background=True, keep_stdin_open=True)
    assert started["status"] == "running" and started["background"]
    url = f"{box.url}/processes/{started['pid']}"
    listed = (await box.http.get(f"{box.url}/processes")).json()["processes"]
    assert [each["pid"] for each in listed] == [started["pid"]]
    early = (await box.http.get(url, params={"wait": 0.05})).json()
    assert early["status"] == "running" and early["exit_code"] is None
    assert (await box.http.post(f"{url}/stdin", params={"end": True}, content=b"a line\n")).status_code == 200
    ended = (await box.http.get(url, params={"wait": 30})).json()
    assert (ended["status"], ended["exit_code"]) == ("exited", 5)
    for _ in range(2):  # as often as one likes
        events = events_of((await box.http.get(f"{url}/output")).text)
        assert text_of(events, "stdout") == "out\ngot a line\n" and events[-1][1]["exit_code"] == 5
    rest = events_of((await box.http.get(f"{url}/output", params={"stdout_from": 4})).text)
    assert text_of(rest, "stdout") == "got a line\n"
    problem(await box.http.post(f"{url}/stdin", content=b"more"), 409, "process_ended")
    problem(await box.http.post(f"{url}/signal", json={}), 409, "process_ended")
    assert (await box.http.delete(url)).status_code == 200
    problem(await box.http.get(url), 404, "process_not_found")


async def test_signals_reach_the_command_and_a_kill_everything_it_started(box: OneSandbox) -> None:
    started = await box.exec("trap 'echo caught; exit 7' USR1; sleep 100 & echo $!; wait", background=True)
    url = f"{box.url}/processes/{started['pid']}"
    await asyncio.sleep(0.3)
    assert (await box.http.post(f"{url}/signal", json={"signal": "usr1"})).status_code == 200
    assert (await box.http.get(url, params={"wait": 30})).json()["exit_code"] == 7
    started = await box.exec("sleep 100", background=True)
    url = f"{box.url}/processes/{started['pid']}"
    await box.http.post(f"{url}/signal", json={"signal": 15, "descendants": True})
    assert (await box.http.get(url, params={"wait": 30})).json()["signal"] == "SIGKILL"


async def test_a_command_is_killed_at_its_timeout(box: OneSandbox) -> None:
    result = await box.exec("echo begun; sleep 100", timeout_seconds=0.3)
    assert (result["timed_out"], result["signal"], result["stdout"]) == (True, "SIGKILL", "begun\n")
    started = await box.exec("sleep 100", timeout_seconds=0.2, background=True)
    ended = (await box.http.get(f"{box.url}/processes/{started['pid']}", params={"wait": 30})).json()
    assert ended["timed_out"] and ended["signal"] == "SIGKILL"
    events = await box.stream("sleep 100", timeout_seconds=0.2)
    assert events[-1][0] == "exit" and events[-1][1]["timed_out"]


async def test_a_terminal_has_its_size_and_takes_input(box: OneSandbox) -> None:
    pty = {"columns": 91, "rows": 17}
    started = await box.exec("stty size; read line; echo got $line", pty=pty, background=True)
    assert started["terminal"]
    url = f"{box.url}/processes/{started['pid']}"
    assert (await box.http.post(f"{url}/resize", json={"columns": 100, "rows": 30})).status_code == 200
    await box.http.post(f"{url}/stdin", content=b"typed\n")
    await box.http.get(url, params={"wait": 30})
    text = text_of(events_of((await box.http.get(f"{url}/output")).text), "stdout")
    assert "got typed" in text and ("17 91" in text or "30 100" in text)
    problem(await box.http.post(f"{url}/resize", json={"columns": 0, "rows": 30}), 422, "invalid_option")


async def test_a_foreground_command_is_killed_when_its_client_stays_away(
    sandboxes: SandboxApi, box: OneSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes.served.services.commands, "_grace_seconds", 0.2)
    running = asyncio.create_task(box.exec("echo $$ > pid; exec sleep 100"))
    while not (file := box.folder / "pid").exists() or not file.read_text().strip():
        await asyncio.sleep(0.02)
    running.cancel()
    assert await is_gone(int(file.read_text()))
    monkeypatch.setattr(sandboxes.served.services.commands, "_grace_seconds", 10)
    kept = asyncio.create_task(box.exec("echo $$ > pid2; exec sleep 1"))
    while not (file := box.folder / "pid2").exists() or not file.read_text().strip():
        await asyncio.sleep(0.02)
    kept.cancel()
    follow = await box.http.get(f"{box.url}/processes/{int(file.read_text())}/output")
    assert events_of(follow.text)[-1][1]["exit_code"] == 0


WRONG_COMMANDS = (
    ({}, None),
    ({"command": "true", "args": ["true"]}, None),
    ({"args": []}, "args"),
    ({"command": ""}, "command"),
    ({"command": "a\0b"}, "command"),
    ({"args": ["\ud800"]}, None),
    ({"command": "x" * 200_000}, "command"),
    ({"command": "true", "env": {"1A": "x"}}, "env"),
    ({"command": "true", "cwd": "x\0"}, "cwd"),
    ({"command": "true", "timeout_seconds": -1}, "timeout_seconds"),
    ({"command": "true", "timeout_seconds": "NaN"}, "timeout_seconds"),
    ({"command": "true", "pty": {"columns": 70000}}, "pty"),
    ({"command": "true", "stdin": "a", "stdin_base64": "YQ=="}, None),
    ({"command": "true", "stdin_base64": "???"}, "stdin_base64"),
    ({"command": "true", "max_output_bytes": limits.MAX_OUTPUT_BYTES + 1}, "max_output_bytes"),
    ({"command": "true", "user": "nobody"}, "user"),
    ({"command": "true", "user": -1}, "user"),
    ({"command": "true", "unknown": 1}, "unknown"),
    ({"args": ["/nonexistent/program"]}, None),
    ({"command": "true", "cwd": "/nonexistent"}, None),
)


async def test_an_invalid_command_is_refused(box: OneSandbox) -> None:
    for body, option in WRONG_COMMANDS:
        content = json.dumps(body)  # with escapes, as httpx does not
        response = await box.http.post(f"{box.url}/exec", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 422, (content[:100], response.text)
        document = response.json()
        assert document["code"] in ("invalid_option", "cannot_start") and document["detail"]
        if option is not None:
            assert document["option"] == option, content[:100]


async def test_an_unknown_process_or_signal_is_refused(box: OneSandbox) -> None:
    for method, path in (("GET", ""), ("GET", "/output"), ("POST", "/signal"), ("POST", "/stdin"), ("DELETE", "")):
        problem(await box.http.request(method, f"{box.url}/processes/99999{path}"), 404, "process_not_found")
    started = await box.exec("sleep 100", background=True)
    url = f"{box.url}/processes/{started['pid']}/signal"
    for signal in ("SIGNOTHING", 0, 99, "", "HUP\n"):
        problem(await box.http.post(url, json={"signal": signal}), 422, "invalid_option")


async def test_many_commands_one_after_another_and_at_once_leave_nothing(box: OneSandbox) -> None:
    for number in range(300):
        assert (await box.exec(f"echo {number}"))["stdout"] == f"{number}\n"
    results = await asyncio.gather(*(box.exec(f"sleep 0.2; echo {number}") for number in range(100)))
    assert [result["stdout"] for result in results] == [f"{number}\n" for number in range(100)]
    listed = (await box.http.get(f"{box.url}/processes")).json()["processes"]
    assert all(each["status"] == "exited" for each in listed) and len(listed) <= 400
