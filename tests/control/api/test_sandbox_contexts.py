"""Contexts over HTTP: code whose variables live between calls, results, streams, timeouts, deaths, bad requests."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import httpx
import pytest

from belljar.control.sandboxes import code_run, contexts
from belljar.node.sandboxes import process_table
from control.api.sandbox_calls import LiveSandbox, OneSandbox, SandboxApi, events_of, text_of
from support.served import problem

pytestmark = pytest.mark.process


async def run(box: OneSandbox, code: str, path: str = "/run", **options: Any) -> dict[str, Any]:
    response = await box.http.post(f"{box.url}{path}", json={"code": code, **options}, timeout=60)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def text_in(result: dict[str, Any]) -> str:
    """The text of the main result."""
    (main,) = [each for each in result["results"] if each["is_main"]]
    return str(main["data"]["text/plain"])


async def create(box: OneSandbox, **options: Any) -> str:
    response = await box.http.post(f"{box.url}/contexts", json=options, timeout=60)
    assert response.status_code == 201, response.text
    return f"/contexts/{response.json()['id']}"


async def test_the_default_context_keeps_its_variables(box: OneSandbox) -> None:
    first = await run(box, "import os\nx = 41\nprint('out', os.environ['A'])")
    assert (first["stdout"], first["results"], first["error"]) == ("out 1\n", [], None)
    assert (first["context"], first["language"], first["execution_count"]) == ("python", "python", 1)
    second = await run(box, "x + 1", language="py")
    assert second["results"] == [{"is_main": True, "data": {"text/plain": "42"}}]
    failed = await run(box, "x / 0")
    assert (
        failed["error"]["name"] == "ZeroDivisionError"
        and "line 1, in <module>\n    x / 0" in failed["error"]["traceback"]
    )
    (listed,) = (await box.http.get(f"{box.url}/contexts")).json()["contexts"]
    assert (listed["id"], listed["status"], listed["cwd"]) == ("python", "idle", str(box.folder))
    process = (await box.http.get(f"{box.url}/processes/{listed['pid']}")).json()
    assert process["context"] == {"id": "python", "language": "python"} and process["background"]


async def test_contexts_are_separate_and_have_their_folder_and_variables(box: OneSandbox) -> None:
    (box.folder / "sub").mkdir()
    one = await create(box, cwd=str(box.folder / "sub"), env={"B": "2", "A": "other"})
    two = await create(box)
    await run(box, "x = 1", f"{one}/run")
    seen = await run(box, "import os; ' '.join([os.getcwd(), os.environ['A'], str(x)])", f"{one}/run")
    assert text_in(seen) == f"'{box.folder}/sub other 1'"
    assert (await run(box, "x", f"{two}/run"))["error"]["name"] == "NameError"
    results = await asyncio.gather(*(run(box, "import time; time.sleep(0.3); 5", f"{each}/run") for each in (one, two)))
    assert [text_in(each) for each in results] == ["5", "5"]
    # A restart forgets the variables and keeps folder and environment.
    restarted = await asyncio.gather(*(box.http.post(f"{box.url}{one}/restart", timeout=60) for _ in range(3)))
    assert {each.status_code for each in restarted} == {200}
    assert (await box.http.get(f"{box.url}{one}")).json()["status"] == "idle"
    assert (await run(box, "x", f"{one}/run"))["error"]["name"] == "NameError"
    assert text_in(await run(box, "import os; os.environ['B']", f"{one}/run")) == "'2'"
    assert (await box.http.delete(f"{box.url}{one}")).status_code == 200
    problem(await box.http.get(f"{box.url}{one}"), 404, "context_not_found")
    for method, path in (("POST", "/run"), ("POST", "/restart"), ("POST", "/interrupt"), ("DELETE", "")):
        response = await box.http.request(
            method, f"{box.url}{one}{path}", json={"code": "1"} if path == "/run" else None
        )
        problem(response, 404, "context_not_found")


async def test_a_stream_has_everything_as_it_comes_and_done_at_last(box: OneSandbox) -> None:
    code = "import sys\nprint('a'); display('shown'); print('b', file=sys.stderr)\n1 / 0"
    response = await box.http.post(f"{box.url}/run?stream=true", json={"code": code}, timeout=60)
    events = events_of(response.text)
    kinds = [kind for kind, _ in events]
    assert set(kinds) == {"stdout", "result", "stderr", "error", "done"} and kinds[-1] == "done"
    assert (text_of(events, "stdout"), text_of(events, "stderr")) == ("a\n", "b\n")
    done = events[-1][1]
    assert (done["execution_count"], done["timed_out"], done["restarted"]) == (1, False, False)
    large = await box.http.post(f"{box.url}/run?stream=true", json={"code": "print('y' * 3_000_000)"}, timeout=60)
    assert len(text_of(events_of(large.text), "stdout")) == 3_000_001
    cut = await run(box, "print('ü' * 3_000_000)", max_output_bytes=1001)
    assert (cut["stdout"], cut["stdout_truncated"], cut["stderr_truncated"]) == ("ü" * 500, True, False)


async def test_one_run_at_a_time_and_an_interrupt_ends_it(sandboxes: SandboxApi, box: OneSandbox) -> None:
    context = await create(box)
    use = sandboxes.node.machines[box.id][0].use
    assert use.activity().in_use == 0  # an idle context is no use
    running = asyncio.create_task(run(box, "n = 0\nprint('begun')\nwhile True: n += 1", f"{context}/run"))
    while (await box.http.get(f"{box.url}{context}")).json()["status"] != "running":
        await asyncio.sleep(0.02)
    problem(await box.http.post(f"{box.url}{context}/run", json={"code": "1"}), 409, "context_busy")
    await asyncio.sleep(0.3)
    assert use.activity().in_use > 0
    assert (await box.http.post(f"{box.url}{context}/interrupt")).status_code == 200
    result = await running
    assert use.activity().in_use == 0
    assert result["error"]["name"] == "KeyboardInterrupt" and not result["timed_out"]
    assert (await box.http.post(f"{box.url}{context}/interrupt")).status_code == 200  # nothing to do
    assert text_in(await run(box, "n > 0", f"{context}/run")) == "True"


async def test_a_timeout_interrupts_and_restarts_what_ignores_it(
    box: OneSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(box, "x = 5")
    result = await run(box, "print('begun')\nwhile True: pass", timeout_seconds=0.5)
    assert result["timed_out"] and not result["restarted"] and result["error"]["name"] == "KeyboardInterrupt"
    assert result["stdout"] == "begun\n"
    assert text_in(await run(box, "x")) == "5"
    monkeypatch.setattr(code_run, "INTERRUPT_SECONDS", 0.3)
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    result = await run(box, stubborn, timeout_seconds=1.5)
    assert result["timed_out"] and result["restarted"] and result["execution_count"] is None
    assert result["error"]["name"] == "TimedOut" and "variables are lost" in result["error"]["message"]
    assert (await run(box, "x"))["error"]["name"] == "NameError"


async def test_a_context_that_is_restarted_keeps_its_place(box: OneSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_run, "INTERRUPT_SECONDS", 0.1)
    await run(box, "x = 5")
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    running = asyncio.create_task(run(box, stubborn, timeout_seconds=0.5))
    statuses = set()
    while not running.done():
        body = {"code": "1"}
        statuses.add((await box.http.post(f"{box.url}/run", json=body, timeout=60)).status_code)
        statuses.add((await box.http.get(f"{box.url}/contexts/python")).status_code)
    assert (await running)["restarted"] and statuses <= {200, 409}
    processes = (await box.http.get(f"{box.url}/processes")).json()["processes"]
    assert len([each for each in processes if each["context"]]) == 1


async def test_a_dead_context_says_how_it_died_until_it_is_restarted(box: OneSandbox) -> None:
    await run(box, "x = 1")
    body = {"code": "print('last', flush=True)\nimport os, time; time.sleep(0.5); os._exit(3)"}
    document = problem(await box.http.post(f"{box.url}/run", json=body, timeout=60), 409, "context_died")
    assert "exit code 3" in document["detail"] and "restart" in document["detail"]
    assert (document["exit_code"], document["stdout"]) == (3, "last\n")
    problem(await box.http.post(f"{box.url}/run", json={"code": "x"}), 409, "context_died")
    assert (await box.http.get(f"{box.url}/contexts/python")).json()["status"] == "died"
    problem(await box.http.post(f"{box.url}/contexts/python/interrupt"), 409, "context_died")
    assert (await box.http.post(f"{box.url}/contexts/python/restart")).json()["status"] == "idle"
    assert (await run(box, "x"))["error"]["name"] == "NameError"
    crash = await box.http.post(f"{box.url}/run", json={"code": "import ctypes; ctypes.string_at(0)"}, timeout=60)
    document = problem(crash, 409, "context_died")
    assert document["signal"] == "SIGSEGV" and "Segmentation fault" in document["stderr"]
    await box.http.post(f"{box.url}/contexts/python/restart")
    pid = (await box.http.get(f"{box.url}/contexts/python")).json()["pid"]
    os.kill(pid, signal.SIGKILL)  # while it is idle
    for _ in range(100):
        if (await box.http.get(f"{box.url}/contexts/python")).json()["status"] == "died":
            break
        await asyncio.sleep(0.05)
    assert (
        problem(await box.http.post(f"{box.url}/run", json={"code": "1"}), 409, "context_died")["signal"] == "SIGKILL"
    )


async def test_how_a_context_died_is_known_after_many_commands(
    box: OneSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_table, "_MAX_ENDED", 2)
    await box.http.post(f"{box.url}/run", json={"code": "import os; os._exit(4)"}, timeout=60)
    for _ in range(5):
        await box.exec("true")
    assert len((await box.http.get(f"{box.url}/processes")).json()["processes"]) <= 4
    assert problem(await box.http.post(f"{box.url}/run", json={"code": "1"}), 409, "context_died")["exit_code"] == 4


async def test_a_run_whose_context_is_restarted_or_deleted_ends_with_a_clear_error(box: OneSandbox) -> None:
    for method, path in (("POST", "/restart"), ("DELETE", "")):
        context = await create(box)
        body = {"code": "import time; time.sleep(60)"}
        running = asyncio.create_task(box.http.post(f"{box.url}{context}/run", json=body, timeout=60))
        while (await box.http.get(f"{box.url}{context}")).json()["status"] != "running":
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)
        assert (await box.http.request(method, f"{box.url}{context}{path}")).status_code == 200
        assert "while the code ran" in problem(await running, 409, "context_died")["detail"]
    await asyncio.sleep(0)


async def test_a_client_that_leaves_interrupts_its_run(live: LiveSandbox) -> None:
    box = live.box
    await run(box, "n = 0")
    for path in ("/run", "/run?stream=true"):
        with pytest.raises(httpx.ReadTimeout):
            body = {"code": "import time\nwhile True:\n  n += 1\n  time.sleep(0.01)"}
            await box.http.post(f"{box.url}{path}", json=body, timeout=0.7)
        for _ in range(200):
            if (await box.http.get(f"{box.url}/contexts/python")).json()["status"] == "idle":
                break
            await asyncio.sleep(0.05)
        assert text_in(await run(box, "n > 0")) == "True"


async def test_a_machine_that_dies_ends_the_run_with_an_error(sandboxes: SandboxApi, box: OneSandbox) -> None:
    body = {"code": "import time; time.sleep(60)"}
    await run(box, "1")
    running = asyncio.create_task(box.http.post(f"{box.url}/run", json=body, timeout=60))
    await asyncio.sleep(0.3)
    sandboxes.node.machines[box.id][1].kill()
    assert (await running).json()["code"] in ("sandbox_ended", "stream_broken")


async def test_what_a_hostile_kernel_sends_reaches_only_its_caller(box: OneSandbox) -> None:
    forged = await run(
        box,
        "import os\nfd = 4  # of the kernel\nos.write(fd, b'no message\\n' + b'{\"type\": \"done\"}\\n'); 'real'",
    )
    assert forged["results_dropped"] == 2 and text_in(forged) == "'real'"
    endless = await box.http.post(f"{box.url}/run", json={"code": "while True: os.write(fd, b'x' * 65536)"}, timeout=60)
    document = problem(endless, 409, "context_died")
    assert "no message" in document["detail"]
    await box.http.post(f"{box.url}/contexts/python/restart")
    many = await run(box, "for n in range(500): display(n)")
    assert len(many["results"]) == code_run.MAX_RESULTS and many["results_dropped"] == 300


async def test_a_caller_that_reads_nothing_holds_neither_memory_nor_the_context(
    sandboxes: SandboxApi, box: OneSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_run, "INTERRUPT_SECONDS", 0.3)
    await run(box, "import gc\nchannel = [each for each in gc.get_objects() if type(each).__name__ == 'Channel'][0]")
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while True:\n  channel.send('stdout', text='x'); channel.send('error', name='', message='', traceback='')"
    )
    machine = sandboxes.node.machines[box.id][0]
    async with contexts.Contexts() as mine:
        running = mine.run(box.id, machine, await mine.get(box.id, machine, "python"), code, 2)
        async with asyncio.timeout(30):
            while (await mine.get(box.id, machine, "python")).is_busy:
                await asyncio.sleep(0.05)
        events = [event async for event in running.events()]
    assert [each.kind for each in events[-2:]] == ["error", "done"] and events[-2].data["name"] == "TimedOut"
    assert events[-1].data["output_dropped"] and 1000 < len(events) < 4000


async def test_lines_without_messages_end_the_context(box: OneSandbox) -> None:
    code = "import os\nwhile True: os.write(4, b'\\n' * 65536)"
    endless = await box.http.post(f"{box.url}/run", json={"code": code}, timeout=60)
    assert "no message" in problem(endless, 409, "context_died")["detail"]


async def test_a_sandbox_has_a_limited_number_of_contexts(box: OneSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "MAX_CONTEXTS", 2)
    await create(box)
    await create(box)
    problem(await box.http.post(f"{box.url}/contexts", json={}), 429, "too_many_contexts")


async def test_many_first_runs_at_once_start_one_default_context(box: OneSandbox) -> None:
    responses = await asyncio.gather(
        *(box.http.post(f"{box.url}/run", json={"code": "1"}, timeout=60) for _ in range(8))
    )
    assert {each.status_code for each in responses} <= {200, 409} and 200 in {each.status_code for each in responses}
    assert len((await box.http.get(f"{box.url}/contexts")).json()["contexts"]) == 1


async def test_an_invalid_request_is_refused(box: OneSandbox) -> None:
    for path, body, option in (
        ("/run", {}, "code"),
        ("/run", {"code": 5}, "code"),
        ("/run", {"code": "1", "language": "cobol"}, "language"),
        ("/run", {"code": "1", "timeout_seconds": 0}, "timeout_seconds"),
        ("/run", {"code": "1", "other": 0}, "other"),
        ("/run", {"code": "x" * 1_100_000}, "code"),
        ("/contexts", {"language": ""}, "language"),
        ("/contexts", {"cwd": "a\0b"}, "cwd"),
        ("/contexts", {"env": {"1": "x"}}, "env"),
    ):
        document = problem(await box.http.post(f"{box.url}{path}", json=body), 422, "invalid_option")
        assert document["option"] == option, body
    problem(await box.http.post(f"{box.url}/contexts", json={"cwd": "/nonexistent"}), 422, "cannot_start")
    lacking = await box.http.post(f"{box.url}/contexts", json={"env": {"PATH": "/nonexistent"}})
    assert "python3" in problem(lacking, 422, "cannot_start")["detail"]
    lacking = await box.http.post(
        f"{box.url}/contexts", json={"language": "javascript", "env": {"PATH": "/nonexistent"}}
    )
    assert "node" in problem(lacking, 422, "cannot_start")["detail"]
    assert (await box.http.get(f"{box.url}/contexts")).json()["contexts"] == []
