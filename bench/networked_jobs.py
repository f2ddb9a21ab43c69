#!.venv/bin/python
"""What a network adds to a job, and how fast it is, with real machines and a real server. Needs root and built images.

    .venv/bin/python bench/networked_jobs.py --data-dir DIR [--rounds 30] [--no-speed] [--json]

The machines talk to servers in a namespace that this script makes. DIR is where `belljar image build` has put images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from belljar.node.machines.host.namespace import run_in_namespace
from support.internet import INTERNET, NAMESERVER, NETNS, WEB, listen, simulated_internet
from support.running import Server, serving

POLICIES: dict[str, str | list[str]] = {
    "none": "none",
    "open": "open",
    "list": ["example.org:443", "198.51.100.0/24", *(f"20.{number}.0.0/16" for number in range(100))],
}
SECONDS = 4
POOL_SIZE = 1
POUR = f"""
import socket, time
connection = socket.create_connection(("{WEB}", 5201), 10)
data, end, sent = bytes(1 << 18), time.monotonic() + {SECONDS}, 0
while time.monotonic() < end:
    sent += connection.send(data)
print(sent * 8 / 1e6 / {SECONDS})
"""
DRAIN = f"""
import socket, time
connection = socket.create_connection(("{WEB}", 5202), 10)
end, got = time.monotonic() + {SECONDS}, 0
while time.monotonic() < end:
    got += len(connection.recv(1 << 18))
print(got * 8 / 1e6 / {SECONDS})
"""


def serve(port: int, send: bool, stop: threading.Event) -> threading.Thread:
    """Take everything that comes, or send without end, to one connection at a time."""
    listener = run_in_namespace(NETNS / INTERNET, lambda: listen(WEB, port))
    listener.settimeout(0.2)

    def talk() -> None:
        data = bytes(1 << 18)
        with listener:
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(5)
                    try:
                        while not stop.is_set() and (connection.send(data) if send else connection.recv(1 << 18)):
                            pass
                    except OSError:
                        continue

    thread = threading.Thread(target=talk)
    thread.start()
    return thread


def attaching(server: Server, rounds: int, source: str) -> dict[str, Any]:
    """Milliseconds of each step, by policy, of machines from that source; the policies take turns."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    while min(map(len, seen.values())) < rounds:
        for name, egress in POLICIES.items():
            if source == "pool":
                until_filled(server)
            begun = time.perf_counter()
            job = server.run("print(1)", egress=egress)
            request_ms = (time.perf_counter() - begun) * 1000
            assert job["status"] == "succeeded", job
            if job["machine"]["source"] == source:
                times = {"request": request_ms, "machine": job["timings"]["machine_ms"], **job["timings"]["phases"]}
                seen[name].append(times)
            time.sleep(0.3)
    return {
        f"{source}, {name}: {step} ms": [round(statistics.median(times), 1), round(ninth_tenth(times), 1)]
        for name, found in seen.items()
        for step in found[0]
        for times in ([each[step] for each in found],)
    }


def ninth_tenth(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * 9 // 10)]


def until_filled(server: Server, seconds: float = 60) -> None:
    """Wait until a clone of each of both kinds waits, with a network and without, and nothing is being made."""
    deadline = time.monotonic() + seconds
    while server.http.get("/v1/nodes").json()["nodes"][0]["waiting_clones"] < 2 * POOL_SIZE:
        if time.monotonic() > deadline:
            return
        time.sleep(0.1)
    time.sleep(0.5)


def speed(server: Server) -> dict[str, Any]:
    """Megabits per second of TCP, as a job sees it."""
    figures = {}
    for name, egress in list(POLICIES.items())[1:]:
        for way, code in (("guest → host", POUR), ("host → guest", DRAIN)):
            rates = []
            for _ in range(3):
                job = server.run(code, egress=egress)
                assert job["status"] == "succeeded", (job, server.logs(job))
                rates.append(float(server.logs(job)))
            figures[f"{name}: {way} Mbit/s"] = round(statistics.median(rates))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    stop = threading.Event()
    with simulated_internet(), tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        data_dir.mkdir()
        (data_dir / "images").symlink_to(args.data_dir / "images")
        threads = [serve(5201, False, stop), serve(5202, True, stop)]
        try:
            environment = {"BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]', "BELLJAR_NETWORK_MBIT": "10000"}
            figures = {}
            for source, pool in (("pool", "fixed"), ("snapshot", "off")):
                more = {"BELLJAR_POOL": pool, "BELLJAR_POOL_SIZE": str(POOL_SIZE), "BELLJAR_ACCELERATOR": "tcg"}
                # What waits is told of with each heartbeat, a third of a lease apart.
                with serving(data_dir, BELLJAR_LEASE_SECONDS="1.1", **environment, **more) as server:
                    server.run("print(1)", egress="open")
                    figures |= attaching(server, args.rounds, source)
                    if source == "snapshot" and not args.no_speed:
                        figures |= speed(server)
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
    if args.json:
        print(json.dumps(figures, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
