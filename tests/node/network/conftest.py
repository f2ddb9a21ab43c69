"""Fixtures of the network tests: a simulated internet, slot pools, and a check that the host is unchanged."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from support.internet import NAMESERVER, SimulatedInternet, host_state, simulated_internet


@pytest.fixture
def unchanged_host() -> Iterator[dict[str, str]]:
    """Fail a test that leaves the host's networking changed."""
    before, threads = host_state(), threading.active_count()
    yield before
    assert host_state() == before
    assert threading.active_count() <= threads + 40  # asyncio keeps its own threads until the loop ends


@pytest.fixture
def internet(unchanged_host: dict[str, str]) -> Iterator[SimulatedInternet]:
    with simulated_internet() as made:
        yield made


@pytest.fixture
def network_settings() -> Settings:
    return Settings(nameservers=(IPv4Address(NAMESERVER),), network_slots=1)


@pytest.fixture
async def pool(internet: SimulatedInternet, network_settings: Settings) -> AsyncIterator[SlotPool]:
    """A pool on a host that reaches the simulated internet."""
    async with SlotPool(network_settings) as made:
        yield made
    await asyncio.sleep(0)


def network(text: str) -> IPv4Network:
    return IPv4Network(text)
