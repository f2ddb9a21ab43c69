"""The SDK's contexts against the real application and agent: runs, results, streams, failures."""

from __future__ import annotations

import pytest

from belljar.client import AsyncClient, CodeEvent, CodeFailed, Conflict, NotFound
from control.api.sandbox_calls import LiveSandbox

pytestmark = pytest.mark.process


async def test_code_keeps_its_variables_and_shows_rich_values(client: AsyncClient) -> None:
    async with client.sandbox() as box:
        assert (await box.run_code("x = 20")).text is None
        result = await box.run_code("print('out')\nx * 2 + 2")
        assert (result.text, result.stdout, result.error, result.execution_count) == ("42", "out\n", None, 2)
        assert (await box.run_code("{'a': [x]}")).json == {"a": [20]}
        code = "class P:\n  def _repr_png_(s): return b'PNG'\n  def _repr_html_(s): return '<b>'\ndisplay(P())\n'main'"
        shown = await box.run_code(code)
        assert (shown.text, shown.png, shown.html, shown.svg) == ("'main'", b"PNG", "<b>", None)
        assert [each.is_main for each in shown.results] == [False, True]
        cut = await box.run_code("print('x' * 100)", max_output_bytes=10)
        assert (cut.stdout, cut.stdout_truncated) == ("x" * 10, True)


async def test_what_code_raises_is_in_the_result_and_raised_by_check(client: AsyncClient) -> None:
    async with client.sandbox() as box:
        result = await box.run_code("1 / 0")
        assert result.error is not None and result.error.name == "ZeroDivisionError"
        with pytest.raises(CodeFailed, match="ZeroDivisionError: division by zero\n\nTraceback") as failed:
            result.check()
        assert failed.value.result is result
        late = await box.run_code("while True: pass", timeout_seconds=0.3)
        assert late.timed_out and not late.restarted


async def test_a_context_that_died_is_restarted(live: LiveSandbox) -> None:
    key = live.headers["Authorization"].removeprefix("Bearer ")
    async with AsyncClient(live.base, key) as client:
        box = await client.get_sandbox(live.box.id)
        with pytest.raises(Conflict) as died:
            await box.run_code("import os; os._exit(1)")
        assert died.value.code == "context_died" and died.value.details["exit_code"] == 1
        context = await box.get_context("python")
        assert context.status == "died"
        assert (await context.restart()).status == "idle"
        assert (await box.run_code("1")).check().text == "1"


async def test_a_context_streams_and_is_deleted(client: AsyncClient) -> None:
    async with client.sandbox() as box:
        context = await box.context(env={"B": "2"})
        events = [event async for event in context.stream("import os\nprint(os.environ['B'])\ndisplay(1)\nint('x')")]
        assert [event.kind for event in events] == ["stdout", "result", "error"]
        assert (events[0].text, events[1].result and events[1].result.text) == ("2\n", "1")
        assert events[2].error is not None and events[2].error.name == "ValueError"
        seen: list[CodeEvent] = []
        await context.run("print('a')", on_event=seen.append)
        assert [event.text for event in seen] == ["a\n"]
        await context.interrupt()
        assert [each.id for each in await box.contexts()] == [context.id]
        await context.delete()
        with pytest.raises(NotFound):
            await context.refresh()
