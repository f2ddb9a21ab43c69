"""A waiting machine with its network up: the destinations it reaches before and after a job's policy is applied."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import dns.message
import pytest

from belljar.model.errors import NetworkError
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from node.network.conftest import network
from node.network.test_policies import run
from support.internet import (
    METADATA,
    NAMESERVER,
    WEB,
    Guest,
    RecordingServer,
    SimulatedInternet,
    connected_guest,
    listen,
)

pytestmark = pytest.mark.root

OPEN = Policy(open=True)


def send_query(machine: Guest, name: str) -> None:
    """Send a query without waiting for its answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(dns.message.make_query(name, "A").to_wire(), (machine.slot.gateway, 53))


async def test_until_a_policy_is_applied_a_machine_reaches_nothing(pool: SlotPool, internet: SimulatedInternet) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    with listen("0.0.0.0", 28081) as server:
        host = RecordingServer(server, b"host")
        server.setblocking(False)
        async with pool.with_network_slot() as slot:
            with connected_guest(slot) as machine:
                for address in (WEB, NAMESERVER, METADATA, "10.99.0.1"):
                    assert await run(machine.refused, address)
                assert await run(machine.refused, "10.99.0.1", 28081)
                with pytest.raises(TimeoutError):
                    await run(machine.lookup, "www.example.org", timeout=0.5)
                assert internet.nameserver.queries == [] and internet.web.peers == []
                with pytest.raises(BlockingIOError):
                    host.socket.accept()
                async with pool.with_policy(slot, OPEN):
                    assert await run(machine.get, WEB) == b"web"
                    assert await run(machine.addresses, "www.example.org") == [WEB]


async def test_a_waiting_machine_gets_exactly_the_policy_that_is_applied(
    pool: SlotPool, internet: SimulatedInternet
) -> None:
    internet.nameserver.zone["www.example.org"] = [WEB]
    policies = [
        Policy(networks=(NetworkRule(network(f"{WEB}/32"), 80),)),
        Policy(names=(NameRule("www.example.org", port=443),)),
        Policy(),
    ]
    reached = []
    for policy in policies:
        async with pool.with_network_slot() as slot:
            with connected_guest(slot) as machine:
                await asyncio.sleep(0.1)
                async with pool.with_policy(slot, policy):
                    found = await run(machine.addresses, "www.example.org")
                    refused = [await run(_refused, machine, port) for port in (80, 443)]
                    reached.append((found, refused))
    assert reached == [([], [False, True]), ([WEB], [True, False]), ([], [True, True])]


def _refused(machine: Guest, port: int) -> bool:
    try:
        return machine.refused(WEB, port)
    except AssertionError:
        return False


async def test_queries_from_before_the_policy_allow_nothing(pool: SlotPool, internet: SimulatedInternet) -> None:
    """They wait in the resolver's socket, and the applied policy decides about them."""
    internet.nameserver.zone |= {"www.example.org": [WEB], "other.example.org": [WEB]}
    async with pool.with_network_slot() as slot:
        with connected_guest(slot) as machine:
            for _ in range(50):
                await run(machine.run, lambda: send_query(machine, "other.example.org"))
            async with pool.with_policy(slot, Policy(names=(NameRule("www.example.org"),))) as attachment:
                await asyncio.sleep(0.3)
                assert await run(machine.refused, WEB)
                traffic = await attachment.traffic()
                assert traffic is not None and traffic.refused[0].name == "other.example.org"
    assert internet.nameserver.queries == []


async def test_a_machine_that_is_never_used_leaves_nothing(
    pool: SlotPool, unchanged_host: dict[str, str], internet: SimulatedInternet
) -> None:
    async with pool.with_network_slot() as slot:
        assert slot.namespace.exists()
    async with asyncio.timeout(10):
        while slot.namespace.exists():
            await asyncio.sleep(0.01)


# An event loop that could not be created warns about its missing attributes when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("spare", range(0, 24, 3))
async def test_a_network_that_lacked_descriptors_is_created_once_there_are_some(
    unchanged_host: dict[str, str], network_settings: Settings, spare: int
) -> None:
    """Whatever runs out half-way: the first caller gets an error with the limit to raise, the next one a network."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with SlotPool(network_settings) as pool:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + spare, hard))
        try:
            async with pool.with_network_slot() as slot:
                pass
        except NetworkError as error:
            assert "files" in error.message, error.message
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(20), pool.with_network_slot() as slot:
            assert slot.namespace.exists()
