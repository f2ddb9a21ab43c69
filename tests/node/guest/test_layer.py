"""The frame that tells an agent of the layer behind its script."""

from __future__ import annotations

import struct

import pytest

from belljar.model.errors import MachineDied
from belljar.node.guest import wire
from support.conversation import Converse


def test_every_field_has_its_place() -> None:
    frame = wire.layer(4096, 1 << 33, "/usr/local")
    length, kind, stream, zero = wire.HEADER.unpack(frame[: wire.HEADER.size])
    assert (length, kind, stream, zero) == (26, 0x11, 0, 0)
    assert frame[wire.HEADER.size :] == struct.pack("<QQ", 4096, 1 << 33) + b"/usr/local"


@pytest.mark.parametrize(
    ("script", "layer", "path"), [(0, 1, "/x"), (1, 0, "/x"), (1, 1, "x"), (1, 1, "/" + 200 * "x")]
)
def test_a_layer_that_is_none_is_never_sent(script: int, layer: int, path: str) -> None:
    with pytest.raises(ValueError, match="a layer has a length"):
        wire.layer(script, layer, path)


async def test_an_agent_that_is_no_pid_1_reads_it_and_mounts_nothing(converse: Converse) -> None:
    async with converse() as talk:
        await talk.connection.layer(4096, 4096, "/usr/local")
        exited, out = await talk.run("echo", "still here")
    assert exited.exit_code == 0 and out.stdout == b"still here\n"


@pytest.mark.parametrize("path", [b"", b"usr", b"/a\0b", b"/" + 200 * b"x"])
async def test_a_malformed_one_ends_the_agent(converse: Converse, path: bytes) -> None:
    async with converse() as talk:
        await talk.connection._send(wire.frame(wire.Kind.LAYER, struct.pack("<QQ", 4096, 4096) + path))
        with pytest.raises(MachineDied):
            await talk.run("true")
