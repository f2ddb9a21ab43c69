"""How the bench finds the server that it starts."""

from __future__ import annotations

import asyncio

import pytest

from belljar.bench.server import _address
from belljar.model.errors import HostError


def stderr_of(*lines: bytes) -> asyncio.StreamReader:
    stderr = asyncio.StreamReader()
    stderr.feed_data(b"".join(line + b"\n" for line in lines))
    stderr.feed_eof()
    return stderr


async def test_the_address_is_found_behind_other_lines() -> None:
    hint = b"belljar: ./belljar.toml is not read"
    greeting = b"belljar serves on http://127.0.0.1:4711, data in /tmp/x, key in /tmp/x/admin.key"
    assert await _address(stderr_of(hint, greeting)) == "http://127.0.0.1:4711"


async def test_a_server_that_does_not_start_is_reported_with_its_last_lines() -> None:
    with pytest.raises(HostError, match="the server did not start: belljar: no room left"):
        await _address(stderr_of(b"belljar: starting", b"belljar: no room left"))
