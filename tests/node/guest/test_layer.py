"""The LAYER frame, which announces a layer behind the script."""

from __future__ import annotations

import struct

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest import requests, wire
from support.conversation import ConnectAgent


def test_every_field_has_its_place() -> None:
    frame = requests.layer(4096, 1 << 33, "/usr/local")
    length, frame_type, stream, zero = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert (length, frame_type, stream, zero) == (26, 0x11, 0, 0)
    assert frame[wire.HEADER.size :] == struct.pack("<QQ", 4096, 1 << 33) + b"/usr/local"


@pytest.mark.parametrize(
    ("script", "layer", "path"), [(0, 1, "/x"), (1, 0, "/x"), (1, 1, "x"), (1, 1, "/" + 200 * "x")]
)
def test_an_invalid_layer_is_never_sent(script: int, layer: int, path: str) -> None:
    with pytest.raises(ValueError, match="a layer has a length"):
        requests.layer(script, layer, path)


async def test_an_agent_that_is_no_pid_1_reads_it_and_mounts_nothing(connect_agent: ConnectAgent) -> None:
    async with connect_agent() as agent:
        await agent.connection.set_layer(4096, 4096, "/usr/local")
        exited, out = await agent.run("echo", "still here")
    assert exited.exit_code == 0 and out.stdout == b"still here\n"


@pytest.mark.parametrize("path", [b"", b"usr", b"/a\0b", b"/" + 200 * b"x"])
async def test_a_malformed_one_ends_the_agent(connect_agent: ConnectAgent, path: bytes) -> None:
    async with connect_agent() as agent:
        await agent.connection._frames.send(wire.frame(wire.FrameType.LAYER, struct.pack("<QQ", 4096, 4096) + path))
        with pytest.raises(MachineDied):
            await agent.run("true")
