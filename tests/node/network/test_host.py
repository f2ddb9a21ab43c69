"""The host: its own firewall stays unchanged, and everything is restored, after a kill -9 too."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from belljar.model.errors import NoNetwork
from belljar.node.machines.host.namespace import in_fresh_thread, run_in_namespace
from belljar.node.network import state
from belljar.node.network.layout import HOST_PREFIX, build_layout
from belljar.node.network.leftovers import clear_network_leftovers
from belljar.node.network.netlink import read_host_networks, run_netlink
from belljar.node.network.policy import Policy
from belljar.node.network.pool import SlotPool
from belljar.settings import Settings
from node.network.test_attacks import tracked_flows
from node.network.test_policies import run
from support.internet import NETNS, WEB, SimulatedInternet, connected_guest, host_state, ip, quiet
from support.paths import TESTS

pytestmark = pytest.mark.root

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
USERS_RULES = """
table inet mine {
    set blocked { type ipv4_addr; flags interval; elements = { 192.0.2.128/25 }; }
    chain input { type filter hook input priority filter; policy accept; ip saddr @blocked drop; }
}
table ip nat {
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; ip saddr 172.17.0.0/16 masquerade; }
}
"""


@contextmanager
def another_process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(TESTS / "support/owner_process.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "belljar-" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait(20)
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def users_firewall(unchanged_host: dict[str, str]) -> Iterator[None]:
    """Rules as a user, ufw or docker has them."""
    subprocess.run(["nft", "-f", "-"], input=USERS_RULES, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete table inet mine; delete table ip nat"], check=True)


async def test_a_users_firewall_is_never_touched(users_firewall: None, network_settings: Settings) -> None:
    before = host_state()
    async with SlotPool(network_settings) as pool, pool.with_network(Policy(open=True)):
        during = host_state()["rules"]
        assert "belljar" in during
        for line in USERS_RULES.split():
            assert line.strip(";") in during
    assert host_state() == before


async def test_fifty_machines_leave_the_host_as_it_was(internet: SimulatedInternet, network_settings: Settings) -> None:
    before = host_state()
    async with SlotPool(network_settings.model_copy(update={"network_slots": 3})) as pool:
        for number in range(50):
            async with pool.with_network(Policy(open=number % 2 == 0)):
                pass
    assert host_state() == before


def test_after_kill_9_the_next_start_puts_everything_back(unchanged_host: dict[str, str]) -> None:
    with another_process() as process:
        assert IP_FORWARD.read_text() == "1\n"
        process.kill()
        process.wait(20)
        left = host_state()
        assert left != unchanged_host
        assert left["namespaces"].count("belljar-") == 3 and "table inet belljar_" in left["rules"]
        assert clear_network_leftovers() == 1
        assert host_state() == unchanged_host
    assert clear_network_leftovers() == 0


def test_the_flows_of_a_killed_process_are_flushed(unchanged_host: dict[str, str], internet: SimulatedInternet) -> None:
    with another_process() as process:
        (namespace,) = [
            path for path in NETNS.glob(f"belljar-*-{process.pid}-*") if "goto admit" in job_policy_rules(path.name)
        ]
        number = int(namespace.name.rpartition(".")[2])
        with connected_guest(
            build_layout(Settings(), run_netlink(read_host_networks)).network_slot(namespace)
        ) as machine:
            assert machine.get(WEB) == b"web"
        source = f"src=198.19.0.{2 * number + 1} "
        process.kill()
        process.wait(20)
        assert [line for line in in_fresh_thread(tracked_flows) if source in line]
        assert clear_network_leftovers() == 1
        assert [line for line in in_fresh_thread(tracked_flows) if source in line] == []


def job_policy_rules(namespace: str) -> str:
    command = ["ip", "netns", "exec", namespace, "nft", "list", "chain", "inet", "belljar", "job_policy"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def test_clean_up_leaves_live_owners_alone(unchanged_host: dict[str, str]) -> None:
    with another_process() as living, another_process() as dying:
        dying.kill()
        dying.wait(20)
        assert clear_network_leftovers() == 1
        after = host_state()
        assert after["namespaces"].count("belljar-") == 3 and IP_FORWARD.read_text() == "1\n"
        assert living.poll() is None
        assert living.stdin is not None
        living.stdin.close()
        assert living.wait(20) == 0
        assert host_state() == unchanged_host


def test_a_kill_in_the_middle_of_making_slots_leaves_nothing_for_good(unchanged_host: dict[str, str]) -> None:
    command = [sys.executable, str(TESTS / "support/owner_process.py")]
    for milliseconds in (320, 360, 400, 440, 480, 520):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(milliseconds / 1000)
        process.kill()
        process.communicate(timeout=20)
        clear_network_leftovers()
        assert host_state() == unchanged_host


async def test_forwarding_that_was_on_stays_on(internet: SimulatedInternet, network_settings: Settings) -> None:
    before = IP_FORWARD.read_text()
    IP_FORWARD.write_text("1")
    try:
        async with SlotPool(network_settings) as pool, pool.with_network(Policy(open=True)):
            assert "belljar_guard" not in host_state()["rules"]
        assert IP_FORWARD.read_text() == "1\n"
    finally:
        IP_FORWARD.write_text(before)


async def test_while_forwarding_is_on_the_host_routes_for_no_one_else(
    internet: SimulatedInternet, network_settings: Settings
) -> None:
    """A machine on one of the host's networks must not reach another of them only because jobs run here."""
    before = IP_FORWARD.read_text()
    IP_FORWARD.write_text("0")  # as on a host that does not route
    ip("netns", "add", "bjtest-lan")
    try:
        ip("link", "add", "bjtest1", "type", "veth", "peer", "name", "eth0", "netns", "bjtest-lan")
        quiet("bjtest1")
        ip("addr", "add", "10.98.0.1/30", "dev", "bjtest1")
        ip("link", "set", "bjtest1", "up")
        ip("-n", "bjtest-lan", "addr", "add", "10.98.0.2/30", "dev", "eth0")
        ip("-n", "bjtest-lan", "link", "set", "eth0", "up")
        ip("-n", "bjtest-lan", "route", "add", "default", "via", "10.98.0.1")

        def reach() -> None:
            run_in_namespace(NETNS / "bjtest-lan", lambda: socket.create_connection((WEB, 80), 1).close())

        async with SlotPool(network_settings) as pool, pool.with_network(Policy(open=True)) as attachment:
            assert IP_FORWARD.read_text() == "1\n"
            with pytest.raises(TimeoutError):
                await run(reach)
            with connected_guest(attachment.slot) as machine:
                assert await run(machine.get, WEB) == b"web"
        IP_FORWARD.write_text("1")
        await run(reach)  # only the guard table dropped it
    finally:
        IP_FORWARD.write_text(before)
        ip("link", "del", "bjtest1")
        ip("netns", "del", "bjtest-lan")


async def test_a_range_that_the_host_uses_is_refused(unchanged_host: dict[str, str]) -> None:
    ip("route", "add", "198.19.4.0/24", "dev", "lo")
    try:
        async with SlotPool(Settings()) as pool:
            with pytest.raises(NoNetwork, match=r"network_range.*198\.19\.4\.0/24"):
                async with pool.with_network(Policy(open=True)):
                    pass
    finally:
        ip("route", "del", "198.19.4.0/24", "dev", "lo")


async def test_when_all_networks_are_in_use_the_next_one_fails(unchanged_host: dict[str, str]) -> None:
    settings = Settings(network_range=IPv4Network("198.19.0.0/30"), network_slots=0)
    async with SlotPool(settings) as pool, pool.with_network(Policy()), pool.with_network(Policy()):
        with pytest.raises(Exception, match="all 2 networks are in use"):
            async with pool.with_network(Policy()):
                pass


async def test_a_claim_that_is_cancelled_leaves_nothing(unchanged_host: dict[str, str]) -> None:
    async with SlotPool(Settings(network_slots=0)) as pool:

        async def attach() -> None:
            async with pool.with_network(Policy(open=True)):
                await asyncio.sleep(60)

        for number in range(30):
            task = asyncio.create_task(attach())
            await asyncio.sleep(0.002 * number)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert host_state() == unchanged_host


async def test_nothing_is_changed_before_a_machine_wants_a_network(unchanged_host: dict[str, str]) -> None:
    async with SlotPool(Settings()):
        assert host_state() == unchanged_host
        assert not [name for name in host_state()["links"].split() if name.startswith(HOST_PREFIX)]
    assert state.users() == []
