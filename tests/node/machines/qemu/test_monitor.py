"""The monitor of a QEMU that its guest may have taken over: the test plays QEMU's end of the socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from belljar.model.errors import MachineError
from belljar.node.machines.qemu.monitor import Monitor

pytestmark = pytest.mark.process

_GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


class Qemu:
    """The other end: it greets, accepts the negotiation, and then says what the test wants."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.sent_bytes = 0

    async def greet(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self._end)
        await self.say(_GREETING)
        await self.answer({})

    async def say(self, *messages: object) -> None:
        await self.send(b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.sent_bytes += len(data)

    async def command(self) -> dict[str, str]:
        """The next command; no newline follows it, as QEMU needs none."""
        data = b""
        while True:
            data += await self.reader.read(1)
            with contextlib.suppress(ValueError):
                return dict(json.loads(data))

    async def answer(self, value: object) -> str:
        """Answer the next command; returns its name."""
        command = await self.command()
        number = {"id": command["id"]} if "id" in command else {}
        await self.say({"return": value} | number)
        return str(command["execute"])


@asynccontextmanager
async def watched(script: Callable[[Qemu], Awaitable[None]]) -> AsyncIterator[tuple[Monitor, asyncio.Task[str | None]]]:
    host_end, qemu_end = socket.socketpair()
    monitor, qemu = Monitor("test", host_end), Qemu(qemu_end)

    async def play() -> None:
        await qemu.greet()
        await script(qemu)

    playing, watching = asyncio.create_task(play()), asyncio.create_task(monitor.watch())
    try:
        async with asyncio.timeout(60):
            yield monitor, watching
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)
        if hasattr(qemu, "writer"):
            qemu.writer.transport.abort()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def event(name: str, **data: object) -> dict[str, object]:
    return {"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}}


async def forever(qemu: Qemu, data: bytes) -> None:
    while True:
        await qemu.send(data)


def flood(line: bytes) -> Callable[[Qemu], Awaitable[None]]:
    return lambda qemu: forever(qemu, line * max(1, (1 << 18) // len(line)))


FLOODS = {
    "stops": (json.dumps(event("STOP", filler="x" * 4096)).encode() + b"\n", "1000 unsolicited messages.* STOP"),
    "small events": (b'{"event":"NICE"}\n', "1000 unsolicited messages.* NICE"),
    "replies": (b'{"return":{},"id":"none"}\n', "1000 unsolicited messages.* a reply to no command"),
    "a line without an end": (b"x" * 65536, "a line of over 65536 bytes"),
    "no json": (b"hello\n", "invalid QMP"),
    "no object": (b"[1]\n", "invalid QMP"),
    "depth": (b"[" * 50_000 + b"]" * 50_000 + b"\n", "a line of over|invalid QMP"),
    "an id that is no text": (b'{"return":{},"id":["a"]}\n', "1000 unsolicited messages"),
    "an event without a text for its name": (b'{"event":{"a":1}}\n', r"1000 unsolicited messages.* \?"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_monitor_that_talks_too_much_is_a_reason_to_end_the_machine(name: str) -> None:
    line, reason = FLOODS[name]
    tracemalloc.start()
    try:
        async with watched(flood(line)) as (_, watching):
            fault = await watching
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert fault is not None and "may have taken it over" in fault
    assert re.search(reason, fault), fault
    assert peak_bytes < 16 << 20


async def test_memory_stays_flat_while_a_query_is_not_answered() -> None:
    """QEMU stops its guest, and floods the monitor in place of the answer to the query."""

    async def script(qemu: Qemu) -> None:
        await qemu.say(event("STOP"))
        await qemu.command()
        await forever(qemu, (json.dumps(event("STOP", filler="x" * 4096)).encode() + b"\n") * 64)

    async with watched(script) as (_, watching):
        assert "over 1000 unsolicited messages" in str(await watching)


async def test_disk_errors_that_a_guest_causes_do_not_end_its_machine() -> None:
    line = json.dumps(event("BLOCK_IO_ERROR", device="root", reason="No space left on device")).encode() + b"\n"
    monitors: list[Qemu] = []

    async def script(qemu: Qemu) -> None:
        monitors.append(qemu)
        await forever(qemu, line * 1000)

    async with watched(script) as (_, watching):
        done, _ = await asyncio.wait({watching}, timeout=1)
        assert not done
        # What is not read stays in QEMU: the socket's buffers and ours are all that was taken.
        assert monitors[0].sent_bytes < 4 << 20


async def test_two_answers_to_one_question_are_a_fault() -> None:
    async def script(qemu: Qemu) -> None:
        await qemu.say(event("STOP"))
        command = await qemu.command()
        answer = {"return": {"status": "running"}, "id": command["id"]}
        await qemu.say(*[answer] * 2000)
        await asyncio.sleep(60)

    async with watched(script) as (_, watching):
        assert await watching is not None


async def test_the_events_of_a_normal_qemu_are_understood() -> None:
    async def script(qemu: Qemu) -> None:
        await qemu.say(event("RESUME"), event("STOP"))
        assert await qemu.answer({"status": "running"}) == "query-status"
        await qemu.say(event("SHUTDOWN", guest=True, reason="guest-reset"), event("GUEST_PANICKED"))
        qemu.writer.close()

    async with watched(script) as (monitor, watching):
        assert await watching is None
        assert (monitor.shutdown_reason, monitor.panicked) == ("guest-reset", True)


async def test_the_run_state_of_a_broken_emulator_is_the_reason() -> None:
    async def script(qemu: Qemu) -> None:
        await qemu.say(event("STOP"))
        await qemu.answer({"status": "internal-error"})
        await asyncio.sleep(60)

    async with watched(script) as (_, watching):
        assert await watching == "QEMU stopped in the run state internal-error"


@pytest.mark.parametrize("answer", [[], 7, {"status": ["x"]}, {"status": "completed" * 2}])
async def test_strange_answers_break_nothing(answer: object) -> None:
    async def script(qemu: Qemu) -> None:
        await qemu.say(event("STOP"))
        await qemu.answer(answer)
        qemu.writer.close()

    async with watched(script) as (_, watching):
        assert await watching is None


async def test_a_freeze_with_invalid_answers_is_a_machine_error() -> None:
    async def script(qemu: Qemu) -> None:
        for _ in range(3):
            await qemu.answer({})
        await qemu.answer(["nonsense"])
        await asyncio.sleep(60)

    async with watched(script) as (monitor, _):
        with open("/dev/null", "wb") as state, pytest.raises(MachineError, match="could not write"):
            await monitor.freeze(state.fileno())
