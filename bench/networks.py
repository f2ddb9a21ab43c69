#!.venv/bin/python
"""Figures of networks on this host: a slot made, claimed, destroyed; many at once; throughput; memory. Needs root.

    .venv/bin/python bench/networks.py [--slots 200] [--json]

Changes the host's networking while it runs, as jobs with networks do, and puts it back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.host.tap import open_tap
from belljar.node.machines.protocol import NetworkSlot
from belljar.node.network import slot as slot_module
from belljar.node.network.kernel_backend import KernelBackend
from belljar.node.network.layout import build_layout
from belljar.node.network.netlink import read_host_networks, run_netlink
from belljar.node.network.nft import Nft
from belljar.node.network.policy import NameRule, NetworkRule, Policy
from belljar.node.network.pool import SlotPool
from belljar.node.network.slot import KernelSlot
from belljar.settings import Settings
from support.internet import INTERNET, NETNS, WEB, listen, simulated_internet

LISTED = Policy(
    names=(NameRule("example.org", port=443), NameRule("example.net", subdomains=True)),
    networks=(NetworkRule(IPv4Network("198.51.100.0/24"), 5201), NetworkRule(IPv4Network("20.0.0.0/16"))),
)
LARGEST = Policy(networks=tuple(NetworkRule(IPv4Network((0x14000000 + 256 * n, 24)), 443) for n in range(256)))
GUEST = "bjtest-wired"
_SECONDS = 3.0
_CHUNK = 1 << 20


def ip(*words: str, program: str = "ip") -> None:
    subprocess.run([program, *words], check=True, capture_output=True, timeout=20)


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def ninth_tenth(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 9 // 10)]


def memory_kb() -> dict[str, int]:
    """The kernel's own memory and this process's, in KiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    info = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return {"kernel": info["Slab"] + info.get("Percpu", 0) + info["KernelStack"], "process": own}


def many_slots(count: int) -> dict[str, object]:
    """Make that many slots, one after the other; all live at once; then destroy them."""
    settings = Settings()
    layout, owner = build_layout(settings, run_netlink(read_host_networks)), owner_name(os.getpid())
    host = KernelBackend(owner, layout, ())
    figures: dict[str, object] = {"host table ms": milliseconds(host.open)}
    slots: list[KernelSlot] = []
    try:
        before = memory_kb()
        made, made_cpu = [], []
        for _ in range(count):
            begun = time.process_time()
            made.append(milliseconds(lambda: slots.append(host.create_slot())))
            made_cpu.append((time.process_time() - begun) * 1000)
        after = memory_kb()
        for name, policy in (("open", Policy(open=True)), ("list of 4", LISTED), ("list of 256", LARGEST)):
            chosen = slots[:20] if policy.open else slots[20:40] if policy is LISTED else slots[40:60]
            times = [milliseconds(lambda slot=slot, policy=policy: slot.apply_policy(policy)) for slot in chosen]  # type: ignore[misc]
            figures[f"policy {name} ms"] = round(statistics.median(times), 2)
        taps: list[int] = []
        opening = [milliseconds(lambda slot=slot: taps.append(open_tap(slot.network_slot()))) for slot in slots[:20]]  # type: ignore[misc]
        for tap in taps:
            os.close(tap)
        figures["TAP opened ms"] = round(statistics.median(opening), 2)
        figures["counters read ms"] = round(
            statistics.median(milliseconds(slot.read_traffic) for slot in slots[:20]), 2
        )
        tenth = max(1, count // 10)
        figures |= {
            "slots": count,
            "slot made ms, median": round(statistics.median(made), 2),
            "slot made ms, 90 %": round(ninth_tenth(made), 2),
            "slot made, processor ms, median": round(statistics.median(made_cpu), 2),
            "slot made, processor ms, 90 %": round(ninth_tenth(made_cpu), 2),
            "of the first tenth, processor ms": round(statistics.median(made_cpu[:tenth]), 2),
            "of the last tenth, processor ms": round(statistics.median(made_cpu[-tenth:]), 2),
            "kernel memory per slot KiB": (after["kernel"] - before["kernel"]) // count,
            "process memory per slot KiB": (after["process"] - before["process"]) // count,
        }
    finally:
        gone = [milliseconds(lambda slot=slot: slot.remove()) for slot in slots]  # type: ignore[misc]
        host.close()
    figures["slot destroyed ms, median"] = round(statistics.median(gone), 2)
    return figures


async def claims(rounds: int) -> dict[str, object]:
    """Claims from a pool that had the time to fill."""
    figures: dict[str, object] = {}
    async with SlotPool(Settings(network_slots=4)) as pool:
        async with pool.with_network(Policy()):
            pass
        for name, policy in (("open", Policy(open=True)), ("list", LISTED)):
            times, spent, releases = [], [], []
            for _ in range(rounds):
                while pool.ready < 4 or pool.removing:
                    await asyncio.sleep(0.01)
                start, begun = time.perf_counter(), time.process_time()
                async with pool.with_network(policy):
                    times.append((time.perf_counter() - start) * 1000)
                    spent.append((time.process_time() - begun) * 1000)
                    await asyncio.sleep(0.02)
                    end = time.perf_counter()
                releases.append((time.perf_counter() - end) * 1000)
            figures[f"claim {name} ms, median"] = round(statistics.median(times), 2)
            figures[f"claim {name} ms, 90 %"] = round(ninth_tenth(times), 2)
            figures[f"claim {name}, processor ms, median"] = round(statistics.median(spent), 2)
            figures[f"claim {name}, processor ms, 90 %"] = round(ninth_tenth(spent), 2)
            figures[f"release {name} ms, median"] = round(statistics.median(releases), 2)
    return figures


def _pour(connection: socket.socket, stop: threading.Event) -> int:
    sent, data = 0, b"x" * _CHUNK
    connection.settimeout(1)
    while not stop.is_set():
        try:
            sent += connection.send(data)
        except TimeoutError:
            continue
        except OSError:
            break
    return sent


def _drain(connection: socket.socket, seconds: float) -> float:
    """Megabits per second that came."""
    got, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        got += len(connection.recv(_CHUNK))
    return got * 8 / 1e6 / (time.monotonic() - start)


def _measure(sender: socket.socket, receiver: socket.socket) -> float:
    stop = threading.Event()
    thread = threading.Thread(target=_pour, args=(sender, stop))
    thread.start()
    try:
        return round(_drain(receiver, _SECONDS))
    finally:
        stop.set()
        receiver.close()
        thread.join(5)


@contextlib.contextmanager
def wired() -> Iterator[Callable[[NetworkSlot], Path]]:
    """Slots get an end of a cable instead of a TAP device, and a guest's kernel the other: no program copies frames."""
    ip("netns", "add", GUEST)
    place = NETNS / GUEST

    def attach(name: str, *, persist: bool) -> int:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", GUEST)
        return os.open(os.devnull, os.O_RDONLY)

    def use(network_slot: NetworkSlot) -> Path:
        for words in (
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "address", network_slot.guest_mac, "mtu", str(network_slot.mtu), "up"),
            ("addr", "add", network_slot.guest_address, "dev", "eth0"),
            ("route", "add", "default", "via", network_slot.gateway),
        ):
            ip("-n", GUEST, *words)
        return place

    real, slot_module.attach_tap = slot_module.attach_tap, attach
    try:
        yield use
    finally:
        slot_module.attach_tap = real
        ip("netns", "del", GUEST)


def only_nat(slot: KernelSlot, host_table: str) -> None:
    """Take every filter and limit away, on both sides; addresses must still be translated."""
    bare = "table ip bare {{ chain out {{ type nat hook postrouting priority srcnat; oifname {} masquerade; }}; }}"

    def inner() -> None:
        with Nft() as nft:
            nft.run("flush ruleset")
            nft.run(bare.format("up0"))

    run_in_namespace(slot.path, inner)
    for device in ("tap0", "up0"):
        ip("-n", slot.path.name, "qdisc", "del", "dev", device, "root", program="tc")
    with Nft() as nft:
        nft.run(f"flush table inet {host_table}\n" + bare.format('"bjtest0"'))


def throughput(rounds: int) -> dict[str, object]:
    """TCP between a guest's kernel and the internet's, over a slot, both ways, and with nothing but NAT beside it."""
    limits = {"network_mbit": 34_000, "network_packets_per_second": 10_000_000}  # none that is met
    settings = Settings().model_copy(update=limits)
    policies = {"open": Policy(open=True), "list of 4": LISTED, "list of 256": with_web(LARGEST), "NAT alone": None}
    found: dict[str, list[float]] = {}
    with simulated_internet():
        listener = run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 5201))
        for _ in range(rounds):
            for name, policy in policies.items():
                with wired() as use:
                    layout, owner = build_layout(settings, run_netlink(read_host_networks)), owner_name(os.getpid())
                    host = KernelBackend(owner, layout, ())
                    host.open()
                    slot = host.create_slot()
                    try:
                        if policy is not None:
                            slot.apply_policy(policy)
                        else:
                            only_nat(slot, host._table)
                        place = use(slot.network_slot())
                        for way, up in (("guest → host", True), ("host → guest", False)):
                            ours = run_in_namespace(place, lambda: socket.create_connection((WEB, 5201), 5))
                            theirs, _ = listener.accept()
                            with ours, theirs:
                                rate = _measure(ours, theirs) if up else _measure(theirs, ours)
                            found.setdefault(f"{name}: {way} Mbit/s", []).append(rate)
                    finally:
                        slot.remove()
                        host.close()
                        if policy is None:
                            with Nft() as nft:
                                nft.run("delete table ip bare")
        listener.close()
    return {name: round(statistics.median(rates)) for name, rates in found.items()}


def with_web(policy: Policy) -> Policy:
    return Policy(networks=(*policy.networks, NetworkRule(IPv4Network(f"{WEB}/32"), 5201)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = many_slots(args.slots) | asyncio.run(claims(args.rounds)) | throughput(3)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:34} {value}")


if __name__ == "__main__":
    main()
