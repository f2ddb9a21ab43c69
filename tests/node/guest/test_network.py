"""The NETWORK frame, which configures the machine's network device."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Interface

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest import requests, wire
from support.conversation import ConnectAgent

INTERFACE = IPv4Interface("172.30.0.2/30")
GATEWAY = IPv4Address("172.30.0.1")


def test_every_field_has_its_place() -> None:
    servers = [IPv4Address("172.30.0.1"), IPv4Address("1.1.1.1")]
    frame = requests.network(INTERFACE, GATEWAY, servers, 1400)
    length, frame_type, stream, zero = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert (length, frame_type, stream, zero) == (24, 0x0C, 0, 0)
    payload = frame[wire.HEADER.size :]
    assert payload[:8] == bytes([172, 30, 0, 2, 172, 30, 0, 1])
    assert struct.unpack("<HBB", payload[8:12]) == (1400, 30, 2)
    assert payload[12:] == bytes([172, 30, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0])


def test_at_most_three_name_servers_are_sent() -> None:
    frame = requests.network(INTERFACE, GATEWAY, [IPv4Address(number) for number in range(5)], 1500)
    assert frame[wire.HEADER.size + 11] == 3


async def test_an_agent_that_is_no_pid_1_reads_it_and_leaves_its_host_alone(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        await agent.connection.set_network(INTERFACE, GATEWAY, [GATEWAY], 1400)
        exited, out = await agent.run("echo", "still here")
    assert exited.exit_code == 0 and out.stdout == b"still here\n"


@pytest.mark.parametrize("payload", [b"", b"\0" * 23, b"\0" * 25, b"\0" * 10 + b"\x21\0" + b"\0" * 12])
async def test_a_malformed_one_ends_the_agent(connect_agent: ConnectAgent, payload: bytes) -> None:
    async with connect_agent() as agent:
        await agent.connection._frames.send(wire.frame(wire.FrameType.NETWORK, payload))
        with pytest.raises(MachineDied):
            await agent.run("true")
