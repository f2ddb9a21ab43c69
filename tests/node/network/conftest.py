"""The tests of networks: a little internet, pools of slots, and a host that must be as it was after each test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from support.internet import NAMESERVER, Internet, host_state, internet


@pytest.fixture
def unchanged_host() -> Iterator[dict[str, str]]:
    """Fails a test that leaves anything of the host's networking other than it was."""
    before, threads = host_state(), threading.active_count()
    yield before
    assert host_state() == before
    assert threading.active_count() <= threads + 40  # asyncio keeps its own threads until the loop ends


@pytest.fixture
def world(unchanged_host: dict[str, str]) -> Iterator[Internet]:
    with internet() as made:
        yield made


@pytest.fixture
def network_settings() -> Settings:
    return Settings(nameservers=(IPv4Address(NAMESERVER),), network_slots=1)


@pytest.fixture
async def pool(world: Internet, network_settings: Settings) -> AsyncIterator[SlotPool]:
    """A pool whose host can reach the little internet."""
    async with SlotPool(network_settings) as made:
        yield made
    await asyncio.sleep(0)


def network(text: str) -> IPv4Network:
    return IPv4Network(text)
