"""Floods of connections and packets: they are bounded, and other machines keep working."""

from __future__ import annotations

import asyncio

import pytest

from belljar.node.machines.host.namespace import in_fresh_thread, run_in_namespace
from belljar.node.network.policy import Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from node.network.test_attacks import GUEST, syn, tracked_flows
from node.network.test_policies import attached, run
from support.internet import (
    NETNS,
    WEB,
    SimulatedInternet,
    connected_guest,
)

pytestmark = pytest.mark.root

OPEN = Policy(open=True)


async def test_a_hundred_thousand_connections_starve_no_other_machine(
    internet: SimulatedInternet, network_settings: Settings
) -> None:
    limit = 100
    settings = network_settings.model_copy(
        update={"network_connections": limit, "network_connections_per_second": 5000}
    )
    async with (
        SlotPool(settings) as pool,
        attached(pool, OPEN) as greedy,
        attached(pool, OPEN) as modest,
    ):
        with connected_guest(greedy.slot) as machine, connected_guest(modest.slot, "bjtest-guest2") as other:

            def flood() -> None:
                for number in range(100_000):
                    machine.send(syn(WEB, 1 + number % 60_000, source_port=1024 + number % 60_000))

            await run(flood)
            number = int(greedy.slot.namespace.name.rpartition(".")[2])
            source = f"src=198.19.0.{2 * number + 1} "
            tracked = run_in_namespace(NETNS / greedy.slot.namespace.name, tracked_flows)
            assert len([line for line in tracked if GUEST in line]) <= limit + 10
            assert len([line for line in in_fresh_thread(tracked_flows) if source in line]) <= limit + 10
            assert await run(other.get, WEB) == b"web"
    assert greedy.traffic is not None and greedy.traffic.limited_count > 10_000
    assert [line for line in in_fresh_thread(tracked_flows) if source in line] == [], (
        "the host still tracks flows of a removed slot"
    )


async def test_new_connections_are_bounded_by_rate(internet: SimulatedInternet, network_settings: Settings) -> None:
    settings = network_settings.model_copy(update={"network_connections_per_second": 10})
    async with SlotPool(settings) as pool, attached(pool, OPEN) as attachment:
        with connected_guest(attachment.slot) as machine:
            for number in range(500):
                machine.send(syn(WEB, 80, source_port=1024 + number))
            await asyncio.sleep(0.3)
    assert attachment.traffic is not None and attachment.traffic.limited_count > 400


async def test_packets_are_bounded_by_rate(internet: SimulatedInternet, network_settings: Settings) -> None:
    settings = network_settings.model_copy(update={"network_packets_per_second": 100})
    async with SlotPool(settings) as pool, attached(pool, Policy()) as attachment:
        with connected_guest(attachment.slot) as machine:
            for number in range(5000):
                machine.send(syn(WEB, 80, source_port=1024 + number))
            await asyncio.sleep(0.3)
    assert attachment.traffic is not None and attachment.traffic.refused_count < 1500
