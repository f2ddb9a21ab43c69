"""The monitor that loads a snapshot: its answers are awaited for a bounded time and in bounded memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from belljar.model.errors import MachineError, MachineTimeout
from belljar.node.machines.qemu.command import load_command, prepare_commands
from belljar.node.machines.qemu.orders import Orders

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
RETURN = b'{"return": {}}\r\n'
EVENT = b'{"event": "MIGRATION", "data": {"status": "setup"}}\r\n'


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Orders, socket.socket]]:
    host, qemu = socket.socketpair()
    with host, qemu:
        yield Orders(host), qemu


async def test_every_command_is_answered_behind_a_greeting_and_events(ends: tuple[Orders, socket.socket]) -> None:
    orders, qemu = ends
    qemu.sendall(GREETING + RETURN + EVENT + RETURN + RETURN)
    await orders.execute(prepare_commands(), 10)
    sent = [json.loads(line) for line in qemu.recv(1 << 16).splitlines()]
    assert sent[0]["execute"] == "qmp_capabilities" and len(sent) == 3
    qemu.sendall(EVENT + RETURN)
    await orders.execute([load_command(7)], 10)
    assert json.loads(qemu.recv(1 << 16)) == {"execute": "migrate-incoming", "arguments": {"uri": "fd:7"}}


async def test_an_answer_may_come_in_pieces(ends: tuple[Orders, socket.socket]) -> None:
    orders, qemu = ends
    waiting = asyncio.create_task(orders.execute([load_command(7)], 10))
    for number in range(len(RETURN)):
        qemu.sendall(RETURN[number : number + 1])
        await asyncio.sleep(0)
    await waiting


async def test_a_silent_qemu_is_given_up_after_the_time(ends: tuple[Orders, socket.socket]) -> None:
    orders, _ = ends
    with pytest.raises(MachineTimeout, match="did not answer on its monitor"):
        await orders.execute([load_command(7)], 0.01)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": {"class": "GenericError", "desc": "no such file"}}\n', "refused to prepare.*no such file"),
        (b'{"error": 7}\n', "refused to prepare"),
        (b"what?\n", "something other than QMP"),
        (b"[]\n", "something other than QMP"),
        (b"\xff\xfe\n", "something other than QMP"),
        (b"[" * 10_000 + b"\n", "something other than QMP"),
        (b"x" * 20_000, "without an answer"),
    ],
)
async def test_anything_but_an_answer_is_an_error(
    ends: tuple[Orders, socket.socket], answer: bytes, message: str
) -> None:
    orders, qemu = ends
    qemu.sendall(answer)
    with pytest.raises(MachineError, match=message):
        await orders.execute([load_command(7)], 10)


async def test_a_qemu_that_ended_is_an_error_when_it_must_answer_and_none_when_it_was_just_started(
    ends: tuple[Orders, socket.socket],
) -> None:
    orders, qemu = ends
    qemu.close()
    with pytest.raises(MachineError):
        await orders.execute([load_command(7)], 10)
    orders.send([*prepare_commands(), load_command(7)])
