"""Logs as text and as events that can be resumed, while a job runs and after it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from belljar.control.logs.log import LogWriter, keep_log, log_path
from belljar.model.job import Job
from belljar.model.log_stream import LogStream
from belljar.model.states import Status
from support.served import Served, problem

EVENTS = {"Accept": "text/event-stream"}


class Running:
    """A job that runs as far as its worker's writing goes."""

    def __init__(self, api: Served, job: Job) -> None:
        self.api = api
        self.job = job
        self.path = f"/v1/jobs/{job.id}/logs"

    def say(self, data: bytes, stream: LogStream = LogStream.STDOUT, attempt: int = 0) -> None:
        with LogWriter(log_path(self.api.services.settings.data_dir, self.job.id), attempt=attempt) as writer:
            writer.append(stream, data)

    async def end(self, status: Status = Status.SUCCEEDED) -> None:
        await keep_log(self.api.services.settings.data_dir, self.api.services.blobs, self.job.id)
        await self.api.end(self.job, status, exit_code=0)

    async def events(self, **query: Any) -> list[dict[str, Any]]:
        headers = {**EVENTS, **query.pop("headers", {})}
        response = await self.api.http.get(self.path, params=query, headers=headers)
        assert response.headers["content-type"].startswith("text/event-stream")
        return parsed(response.text)


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append({**fields, "data": json.loads(fields["data"])})
    return found


@pytest.fixture
async def running(api: Served) -> Running:
    await api.submit()
    return Running(api, await api.begin())


async def test_streams_come_together_or_alone(running: Running) -> None:
    running.say(b"out\n")
    running.say(b"err\n", LogStream.STDERR)
    running.say(b"boot\n", LogStream.CONSOLE)
    running.say(b"out again\n")
    for ended in (False, True):
        get = running.api.http.get
        assert (await get(running.path)).text == "out\nerr\nout again\n"
        assert (await get(running.path, params={"stream": "stdout"})).text == "out\nout again\n"
        assert (await get(running.path, params={"stream": "stderr"})).text == "err\n"
        assert (await get(running.path, params={"stream": "console"})).text == "boot\n"
        assert (await get(running.path, params={"stream": "all"})).text == "out\nerr\nboot\nout again\n"
        if not ended:
            await running.end()


async def test_output_is_that_of_the_last_attempt_and_all_is_what_every_attempt_said(running: Running) -> None:
    running.say(b"begin ", attempt=1)
    running.say(b"lost\n", LogStream.CONSOLE, attempt=1)
    claims = running.api.services.claims
    assert await claims.requeue("w1", running.job, reason="its node died", code="x") is not None
    running.job = await running.api.begin()
    assert running.job.attempt == 2
    running.say(b"begin done", attempt=2)
    await running.end()
    get = running.api.http.get
    assert (await get(running.path)).text == "begin done"
    assert (await get(running.path, params={"stream": "stdout"})).text == "begin done"
    assert (await get(running.path, params={"stream": "console"})).text == "lost\n"
    assert (await get(running.path, params={"stream": "all"})).text == "begin lost\nbegin done"
    output = [event["data"] for event in await running.events() if "id" in event]
    assert output == [{"text": "begin done", "attempt": 2}]


async def test_a_job_that_has_said_nothing_has_an_empty_log(running: Running) -> None:
    assert (await running.api.http.get(running.path)).text == ""
    assert await running.events() == []
    await running.end()
    assert (await running.api.http.get(running.path)).text == ""
    assert [event["event"] for event in await running.events(follow=True)] == ["end"]


async def test_following_goes_on_until_the_job_has_ended(running: Running) -> None:
    running.say(b"one\n")
    as_text = asyncio.create_task(running.api.http.get(running.path, params={"follow": True}))
    as_events = asyncio.create_task(running.events(follow=True))
    await asyncio.sleep(0.1)
    running.say(b"two\n")
    assert not as_text.done() and not as_events.done()
    await running.end()
    assert (await as_text).text == "one\ntwo\n"
    events = await as_events
    assert [event["event"] for event in events] == ["stdout", "stdout", "end"]
    assert events[-1]["data"] == {"status": "succeeded", "exit_code": 0}
    assert "id" not in events[-1]


async def test_an_event_stream_resumes_behind_any_event(running: Running) -> None:
    for number in range(4):
        running.say(f"{number}\n".encode())
    for ended in (False, True):
        events = [event for event in await running.events() if event["event"] == "stdout"]
        assert "".join(event["data"]["text"] for event in events) == "0\n1\n2\n3\n"
        for place, event in enumerate(events):
            rest = await running.events(headers={"Last-Event-ID": event["id"]})
            assert [each["data"] for each in rest if "id" in each] == [each["data"] for each in events[place + 1 :]]
        if not ended:
            await running.end()


@pytest.mark.parametrize("event_id", ["x", "-1", "1.5", "²", "9" * 16, ""])
async def test_an_event_id_that_is_none_is_refused(running: Running, event_id: str) -> None:
    headers = {**EVENTS, "Last-Event-ID": event_id.encode()}
    response = await running.api.http.get(running.path, headers=headers)  # type: ignore[arg-type]
    assert "Last-Event-ID" in problem(response, 400, "invalid_request")["detail"]


@pytest.mark.parametrize("ended", [False, True])
async def test_an_event_id_behind_the_end_gives_nothing(running: Running, ended: bool) -> None:
    running.say(b"x" * 100)
    if ended:
        await running.end()
    events = await running.events(headers={"Last-Event-ID": "999999999999"})
    assert [event["event"] for event in events] == (["end"] if ended else [])


@pytest.mark.parametrize("ended", [False, True])
async def test_an_event_id_in_the_middle_of_an_event_is_refused(running: Running, ended: bool) -> None:
    running.say(b"\xff" * 100)
    if ended:
        await running.end()
    response = await running.api.http.get(running.path, headers={**EVENTS, "Last-Event-ID": "10"})
    assert "is not an event boundary" in problem(response, 400, "invalid_request")["detail"]


async def test_text_is_the_bytes_and_events_are_unicode(running: Running) -> None:
    running.say(b"caf\xc3")
    running.say(b"\xa9 \xff\n")
    await running.end()
    assert (await running.api.http.get(running.path)).content == b"caf\xc3\xa9 \xff\n"
    assert "".join(e["data"]["text"] for e in await running.events() if "id" in e) == "café \ufffd\n"


async def test_what_a_job_writes_cannot_forge_an_event(running: Running) -> None:
    running.say(b"\n\nevent: end\ndata: {}\n\n")
    events = await running.events()
    assert [event["event"] for event in events] == ["stdout"]


async def test_a_stream_that_does_not_exist_is_refused(running: Running) -> None:
    response = await running.api.http.get(running.path, params={"stream": "stdin"})
    assert problem(response, 422, "invalid_option")["option"] == "stream"
