#!.venv/bin/python
"""The cost of counting flows on this host: TCP throughput with and without, a slot, a reading. Needs root.

    .venv/bin/python bench/flows.py [--rounds 8] [--json]

Changes the host's networking while it runs, as jobs with networks do, and puts it back.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from networks import _measure, wired

from belljar.node.machines.host.namespace import run_in_namespace
from belljar.node.machines.host.owner import owner_name
from belljar.node.network.flows import libbpf
from belljar.node.network.kernel_backend import KernelBackend
from belljar.node.network.layout import build_layout
from belljar.node.network.netlink import read_host_networks, run_netlink
from belljar.node.network.policy import Policy
from belljar.node.network.slot import KernelSlot
from belljar.settings import Settings
from support.flows import loaded_programs
from support.internet import INTERNET, NETNS, WEB, listen, simulated_internet

_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
_LIMITS = {"network_mbit": 34_000, "network_packets_per_second": 10_000_000}  # none that is met


@contextmanager
def opened_backend(flows: str) -> Iterator[KernelBackend]:
    settings = Settings().model_copy(update={**_LIMITS, "network_flows": flows})
    backend = KernelBackend(owner_name(os.getpid()), build_layout(settings, run_netlink(read_host_networks)), ())
    backend.open()
    try:
        yield backend
    finally:
        backend.close()


def throughput(rounds: int) -> dict[str, object]:
    """TCP between a guest's kernel and the internet's, over slots that count flows and slots that do not, in turn."""
    found: dict[tuple[str, str], list[float]] = {}
    with simulated_internet():
        listener = run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 5201))
        for number in range(rounds):
            order = ("off", "on") if number % 2 else ("on", "off")
            for flows in order:
                with opened_backend(flows) as backend, wired() as use:
                    slot = backend.create_slot()
                    try:
                        slot.apply_policy(Policy(open=True))
                        place = use(slot.network_slot())
                        for way, up in (("guest → host", True), ("host → guest", False)):
                            ours = run_in_namespace(place, lambda: socket.create_connection((WEB, 5201), 5))
                            theirs, _ = listener.accept()
                            with ours, theirs:
                                rate = _measure(ours, theirs) if up else _measure(theirs, ours)
                            found.setdefault((way, flows), []).append(rate)
                    finally:
                        slot.remove()
        listener.close()
    figures: dict[str, object] = {}
    for way in ("guest → host", "host → guest"):
        without, counted = found[way, "off"], found[way, "on"]
        figures[f"{way} without, Mbit/s"] = round(statistics.median(without))
        figures[f"{way} counted, Mbit/s"] = round(statistics.median(counted))
        pairs = [1 - on / off for on, off in zip(counted, without, strict=True)]
        figures[f"{way}, cost in %, median of pairs"] = round(100 * statistics.median(pairs), 2)
    return figures


@contextmanager
def statistics_of_programs() -> Iterator[None]:
    """Have the kernel count the time that BPF programs take."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def spent_by_programs(known: set[int]) -> tuple[int, int]:
    """Return the nanoseconds and the runs of all programs that are not `known`."""
    spent = runs = 0
    for number in loaded_programs() - known:
        descriptor = libbpf.library().bpf_prog_get_fd_by_id(number)
        if descriptor < 0:
            continue
        info = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
        os.close(descriptor)
        spent, runs = spent + int(info["run_time_ns"]), runs + int(info["run_cnt"])
    return spent, runs


def time_in_kernel() -> dict[str, object]:
    """What the programs take of a processor while TCP runs as fast as it can; other load changes that little."""
    figures: dict[str, object] = {}
    known = loaded_programs()
    with simulated_internet(), statistics_of_programs(), opened_backend("on") as backend, wired() as use:
        listener = run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, 5201))
        slot = backend.create_slot()
        try:
            slot.apply_policy(Policy(open=True))
            place = use(slot.network_slot())
            for way, up in (("guest → host", True), ("host → guest", False)):
                ours = run_in_namespace(place, lambda: socket.create_connection((WEB, 5201), 5))
                theirs, _ = listener.accept()
                before, begun = spent_by_programs(known), time.process_time()
                with ours, theirs:
                    _measure(ours, theirs) if up else _measure(theirs, ours)
                after, used = spent_by_programs(known), time.process_time() - begun
                spent, runs = after[0] - before[0], after[1] - before[1]
                figures[f"{way}, ns for each packet and device"] = round(spent / max(1, runs))
                figures[f"{way}, % of the processor time of both ends"] = round(spent / used / 1e7, 2)
        finally:
            slot.remove()
            listener.close()
    return figures


def slots(count: int) -> dict[str, object]:
    """Slots made with and without, one of each in turn."""
    figures: dict[str, object] = {}
    spent: dict[str, list[float]] = {"off": [], "on": []}
    readings: list[float] = []
    for flows in ("off", "on"):
        with opened_backend(flows) as backend:
            made: list[KernelSlot] = []
            try:
                for _ in range(count):
                    begun = time.process_time()
                    made.append(backend.create_slot())
                    spent[flows].append((time.process_time() - begun) * 1000)
                if flows == "on":
                    for slot in made:
                        begun = time.process_time()
                        slot.read_flows()
                        readings.append((time.process_time() - begun) * 1e6)
            finally:
                for slot in made:
                    slot.remove()
    figures["slot made without, processor ms"] = round(statistics.median(spent["off"]), 2)
    figures["slot made counted, processor ms"] = round(statistics.median(spent["on"]), 2)
    figures["an idle reading, processor µs"] = round(statistics.median(readings))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--slots", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = slots(args.slots) | time_in_kernel() | throughput(args.rounds)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:52} {value}")


if __name__ == "__main__":
    main()
