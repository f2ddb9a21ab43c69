"""The SECRET frame and variables with secrets, between a connection and the real agent as a process."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from belljar.model.errors import MachineDied
from belljar.model.secrets import SecretValue
from belljar.node.guest import requests, wire
from support.conversation import ConnectAgent

VALUE = SecretValue(b"line one\nline two \xff")


def test_every_field_has_its_place() -> None:
    frame = requests.secret_file("tls.key", VALUE, uid=1000, gid=100)
    length, frame_type, stream, zero = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert (length, frame_type, stream, zero) == (8 + 8 + len(VALUE), 0x12, 0, 0)
    assert frame[wire.HEADER.size :] == struct.pack("<II", 1000, 100) + b"tls.key\0" + VALUE.reveal()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\0b", "x" * 65])
def test_a_name_that_is_no_file_name_is_never_sent(name: str) -> None:
    with pytest.raises(ValueError, match="without a slash"):
        requests.secret_file(name, VALUE, uid=0, gid=0)


async def test_a_command_has_its_variables(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        command = replace(agent.command("sh", "-c", 'printf %s "$TOKEN|$PLAIN"'), secret_env={"TOKEN": VALUE})
        exited, out = await agent.run_command(replace(command, env={**command.env, "PLAIN": "x"}))
    assert exited.exit_code == 0 and out.stdout == VALUE.reveal() + b"|x"


async def test_the_largest_variable_arrives(connect_agent: ConnectAgent) -> None:
    value = SecretValue(b"x" * 64 * 1024)
    async with connect_agent() as agent:
        command = replace(agent.command("sh", "-c", 'echo "${#TOKEN}"'), secret_env={"TOKEN": value})
        _, out = await agent.run_command(command)
    assert out.stdout == b"65536\n"


async def test_an_agent_that_is_no_pid_1_reads_a_file_and_mounts_nothing(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        command = replace(agent.command("echo", "still here"), secret_files={"tls.key": VALUE})
        exited, out = await agent.run_command(command)
    assert exited.exit_code == 0 and out.stdout == b"still here\n"


@pytest.mark.parametrize(
    "rest", [b"", b"TOKEN", b"\0value", b".\0value", b"../up\0value", b"a/b\0value", b"x" * 65 + b"\0value"]
)
async def test_a_malformed_one_ends_the_agent(connect_agent: ConnectAgent, rest: bytes) -> None:
    async with connect_agent() as agent:
        frame = wire.frame(wire.FrameType.SECRET, struct.pack("<II", 1000, 1000) + rest)
        await agent.connection._frames.send(frame)
        with pytest.raises(MachineDied):
            await agent.run("true")


async def test_one_before_a_suspended_agent_is_resumed_ends_it(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        await agent.connection.suspend()
        await agent.connection._frames.send(requests.secret_file("TOKEN", VALUE, uid=0, gid=0))
        with pytest.raises(MachineDied):
            await agent.run("true")
