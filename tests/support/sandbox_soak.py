"""Many sandboxes of a server that is killed, whose machines are killed, and whose callers leave in the middle.

Each sandbox has a life of its own: some commands with known output, one trouble, an end. What callers were told is kept
in a history, which is checked at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from belljar.model.sandbox import EndReason
from support.sandbox_history import History, Life, Report

#: What a caller meets while the server is gone, or is killed.
GONE = (httpx.TransportError, httpx.StreamError)
#: How long a request is repeated while the server is gone.
_PATIENCE_SECONDS = 120.0
_MIB = 1024 * 1024


class Refused(Exception):
    """A call was answered with a problem document."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        try:
            self.code = str(response.json()["code"])
        except (ValueError, KeyError):
            self.code = f"status {response.status_code} without a code"
        super().__init__(f"{self.status} {self.code}")


@dataclass
class Soak:
    """The callers of one server, whose address stays the same when it is started again."""

    http: httpx.AsyncClient
    request: dict[str, Any]
    history: History = field(default_factory=History)
    seed: int = 1

    async def live(self, number: int) -> None:
        """Let one sandbox live and end."""
        chance = random.Random(f"{self.seed} {number}")
        wanted = EndReason.LIFETIME if chance.random() < 0.15 else EndReason.DELETED
        life = Life(number, wanted)
        self.history.lives.append(life)
        try:
            await self._create(life, chance)
            box = Box(self.http, life, chance, await self._home(life))
            await box.commands(chance.randint(1, 5))
            await chance.choice(TROUBLES)(box)
            await box.commands(chance.randint(0, 3))
            await box.read_log()
        except Refused as refused:
            self.history.refusals[refused.code] += 1
        except GONE:
            self.history.refusals["the server was gone"] += 1
        finally:
            await self._end(life)

    async def _create(self, life: Life, chance: random.Random) -> None:
        lifetime = chance.uniform(1, 5) if life.wanted is EndReason.LIFETIME else 600
        body = {**self.request, "lifetime_seconds": lifetime, "labels": {"number": str(life.number)}}
        key = {"Idempotency-Key": f"soak-{self.seed}-{life.number}"}
        response = await self._patiently(lambda: self.http.post("/v1/sandboxes?wait=0", json=body, headers=key))
        if response.status_code not in (201, 202):
            raise Refused(response)
        life.id = response.json()["id"]
        while (found := await self._get(life))["status"] == "creating":
            await asyncio.sleep(0.1)
        if found["status"] != "running":
            raise Refused(response)

    async def _home(self, life: Life) -> str:
        response = await self.http.post(f"/v1/sandboxes/{life.id}/exec", json={"command": "pwd"})
        if response.status_code != 200 or response.json()["exit_code"] != 0:
            raise Refused(response)
        return str(response.json()["stdout"]).strip()

    async def _end(self, life: Life) -> None:
        if life.id is None:
            return
        if life.wanted is EndReason.DELETED:
            await self._patiently(lambda: self.http.delete(f"/v1/sandboxes/{life.id}"))
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (end := await self._get(life))["status"] not in ("ended", "lost"):
                await asyncio.sleep(0.2)
        life.end = end

    async def _get(self, life: Life) -> dict[str, Any]:
        response = await self._patiently(lambda: self.http.get(f"/v1/sandboxes/{life.id}"))
        if response.status_code != 200:
            raise Refused(response)
        found: dict[str, Any] = response.json()
        return found

    async def _patiently(self, call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Repeat a call that may be repeated until the server answers it."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                with contextlib.suppress(*GONE):
                    response = await call()
                    if response.status_code != 503 or response.json().get("code") == "no_room":
                        return response
                await asyncio.sleep(0.2)


@dataclass
class Box:
    """One sandbox that runs."""

    http: httpx.AsyncClient
    life: Life
    chance: random.Random
    home: str

    @property
    def url(self) -> str:
        return f"/v1/sandboxes/{self.life.id}"

    def file(self, name: str) -> str:
        """Return the URL of a file in the working folder, which is absolute."""
        return f"{self.url}/files/{self.home}/{name}"

    async def commands(self, count: int) -> None:
        for _ in range(count):
            await self.command()

    async def command(self) -> None:
        """Run a command, and keep what its caller is told."""
        lines, code = self.chance.choice((0, 1, 20, 2000)), self.chance.choice((0, 0, 3))
        token = f"t{self.life.number}-{len(self.life.commands)}"
        report = Report(token, "".join(f"{token} {line}\n" for line in range(lines)).encode(), code)
        self.life.commands.append(report)
        script = (
            f"echo {token} >> log; i=0; while [ $i -lt {lines} ]; do echo {token} $i; i=$((i+1)); done; exit {code}"
        )
        call = self.chance.choice((self._whole, self._streamed, self._in_background))
        try:
            await call(report, script)
        except Refused as refused:
            report.failure = refused.code
            raise
        except GONE as error:
            report.failure = type(error).__name__
            raise

    async def _whole(self, report: Report, script: str) -> None:
        result = await self.call("POST", "/exec", json={"command": script})
        if result["stdout_truncated"]:
            self.life.wrong.append(f"{report.token}: truncated")
        report.stdout = result["stdout"].encode()
        report.exits.append(result["exit_code"])

    async def _streamed(self, report: Report, script: str) -> None:
        async for name, data in self.events("POST", "/exec?stream=true", json={"command": script}):
            self._note(report, name, data)
        if not report.exits:
            report.failure = report.failure or "stream without an exit"

    async def _in_background(self, report: Report, script: str) -> None:
        process = await self.call("POST", "/exec", json={"command": script, "background": True})
        async for name, data in self.events("GET", f"/processes/{process['pid']}/output"):
            self._note(report, name, data)
        later = await self.call("GET", f"/processes/{process['pid']}?wait=30")
        if report.exits and later["exit_code"] != report.exits[0]:
            self.life.wrong.append(f"{report.token}: exit {report.exits[0]}, later {later['exit_code']}")
        if not report.exits:
            report.failure = report.failure or "stream without an exit"

    def _note(self, report: Report, name: str, data: dict[str, Any]) -> None:
        if report.exits:
            self.life.wrong.append(f"{report.token}: {name} behind the exit")
        if name == "stdout":
            if data["offset"] != len(report.stdout):
                self.life.wrong.append(f"{report.token}: offset {data['offset']} at byte {len(report.stdout)}")
            report.stdout += data["text"].encode()
        elif name == "exit":
            report.exits.append(data["exit_code"])
        elif name == "error":
            report.failure = data["code"]

    async def read_log(self) -> None:
        """Keep which commands ran, by the file that each wrote to."""
        response = await self.http.get(self.file("log"))
        if response.status_code == 200:
            self.life.ran = response.text.split()
        elif response.status_code == 404 and not any(report.exits for report in self.life.commands):
            self.life.ran = []
        else:
            raise Refused(response)

    async def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        response = await self.http.request(method, self.url + path, **options)
        if response.status_code >= 400:
            raise Refused(response)
        result: dict[str, Any] = response.json()
        return result

    async def events(self, method: str, path: str, **options: Any) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield server-sent events; a response without its end raises an error of `GONE`."""
        async with self.http.stream(method, self.url + path, **options) as response:
            if response.status_code >= 400:
                await response.aread()
                raise Refused(response)
            name = ""
            async for line in response.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: "):
                    yield name, json.loads(line[6:])


# --- troubles ---------------------------------------------------------------------------------------------------------


async def nothing(box: Box) -> None:
    """Most sandboxes have no trouble of their own."""


async def leave(box: Box) -> None:
    """Leave in the middle of a command's output."""
    async with contextlib.aclosing(box.events("POST", "/exec?stream=true", json={"command": "yes"})) as events:
        async for name, _ in events:
            if name == "stdout":
                return


async def leave_unread(box: Box) -> None:
    """Start programs whose output nobody reads: in a terminal, and without one."""
    for options in ({"pty": True}, {}):
        await box.call("POST", "/exec", json={"command": "yes", "background": True, **options})


async def write_to_what_has_ended(box: Box) -> None:
    """Send input to a command that has ended: refused, whatever its size."""
    process = await box.call("POST", "/exec", json={"command": "true", "background": True, "keep_stdin_open": True})
    await box.call("GET", f"/processes/{process['pid']}?wait=30")
    try:
        await box.call("POST", f"/processes/{process['pid']}/stdin", content=b"x" * box.chance.choice((1, _MIB)))
    except Refused as refused:
        if refused.code != "process_ended":
            raise
    else:
        box.life.wrong.append("a command that has ended took input")


async def break_an_upload_off(box: Box) -> None:
    """Leave in the middle of an upload: the file stays as it was."""

    async def body() -> AsyncIterator[bytes]:
        yield b"n" * 300_000
        raise ConnectionResetError

    await box.http.put(box.file("upload"), content=b"old")
    with contextlib.suppress(ConnectionResetError):
        await box.http.put(box.file("upload"), content=body())
    response = await box.http.get(box.file("upload"))
    if response.status_code == 200 and response.content != b"old":
        box.life.wrong.append(f"an upload that broke off left {len(response.content)} bytes")


async def shorten_a_file_that_is_read(box: Box) -> None:
    """Truncate a file while it is downloaded: the download is whole or breaks off."""
    size = 4 * _MIB
    if (await box.http.put(box.file("shrinks"), content=bytes(size))).status_code != 201:
        return
    received = 0
    with contextlib.suppress(httpx.RemoteProtocolError):
        async with box.http.stream("GET", box.file("shrinks")) as response:
            async for piece in response.aiter_raw():
                if not received:
                    await box.http.post(f"{box.url}/exec", json={"command": "truncate -s 1000 shrinks"})
                received += len(piece)
            if response.status_code == 200 and received != size:
                box.life.wrong.append(f"a download of a file that was shortened ended well with {received} bytes")


async def run_many(box: Box) -> None:
    """Run thirty commands at once."""
    await asyncio.gather(*(box.command() for _ in range(30)))


async def delete_while_it_runs(box: Box) -> None:
    """Delete the sandbox while a command runs in it."""
    running = asyncio.create_task(box.call("POST", "/exec", json={"command": "sleep 60"}))
    await asyncio.sleep(box.chance.random())
    await asyncio.gather(box.http.delete(box.url), running, return_exceptions=True)
    if not running.exception():
        box.life.wrong.append("a command of a sandbox that was deleted ended well")


TROUBLES: tuple[Callable[[Box], Awaitable[None]], ...] = (
    nothing,
    nothing,
    leave,
    leave_unread,
    write_to_what_has_ended,
    break_an_upload_off,
    shorten_a_file_that_is_read,
    run_many,
    delete_while_it_runs,
)
