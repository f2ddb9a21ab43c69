#!.venv/bin/python
"""Hello world in every language: from the pool, a snapshot and a boot, with real machines over a real server.

    .venv/bin/python bench/languages.py --data-dir DIR [--rounds 11] [--sources pool,boot] [--languages a,b] [--json]

DIR is where `belljar image build` has put images. A figure is the median of whole jobs, from the request to the answer
that the job has ended; in brackets the share of the command itself, from its start in a ready machine to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from belljar.images.catalog import Images
from belljar.model.image import Image, Language
from support.running import Server, serving

SETTINGS = {
    "pool": {"BELLJAR_POOL": "fixed", "BELLJAR_POOL_SIZE": "1"},
    "snapshot": {"BELLJAR_POOL": "off"},
    "boot": {"BELLJAR_POOL": "off", "BELLJAR_SNAPSHOTS": "off"},
}
SECONDS = 900


@contextmanager
def server_of(image: Image, data_dir: Path, source: str) -> Iterator[Server]:
    """A server in a folder of its own that has this image alone."""
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as folder:
        own = Path(folder) / "data" / "images"
        own.mkdir(parents=True)
        for name in ("parts", "manifests", f"{image.name}.json"):
            (own / name).symlink_to(data_dir / "images" / name)
        with serving(own.parent, **SETTINGS[source]) as server:
            yield server


def hello(server: Server, language: Language) -> tuple[float, dict[str, Any]]:
    """Milliseconds of a whole job, and the job."""
    started = time.monotonic()
    job = server.run(language.hello, language.name, 170)
    took = (time.monotonic() - started) * 1000
    if job["status"] != "succeeded" or server.logs(job) != f"Hello from {language.name}!\n".encode():
        raise SystemExit(f"{language.name} did not say hello: {job['status']} {job['error']}")
    return took, job


def measure(server: Server, language: Language, source: str, rounds: int) -> list[tuple[float, float]]:
    """Whole jobs and their commands, in ms; jobs whose machine came from elsewhere do not count."""
    seen: list[tuple[float, float]] = []
    deadline = time.monotonic() + SECONDS
    while len(seen) < rounds:
        if time.monotonic() > deadline:
            raise SystemExit(f"{language.name}: only {len(seen)} machines from {source} within {SECONDS} s")
        if source == "pool":
            until_waiting(server)
        took, job = hello(server, language)
        if job["machine"]["source"] == source:
            phases = job["timings"]["phases"]
            seen.append((took, sum(phases.get(each, 0.0) for each in ("compile", "start", "run"))))
        elif source == "snapshot":
            until_frozen(server)
    return seen


def until_waiting(server: Server) -> None:
    """Until nothing is made any more: a clone of every shape that was asked for waits."""
    quiet, deadline = 0, time.monotonic() + 120
    while quiet < 4 and time.monotonic() < deadline:
        (node,) = server.http.get("/v1/nodes").json()["nodes"]
        quiet = quiet + 1 if node["waiting_clones"] and node["waiting_clones"] == len(server.machines()) else 0
        time.sleep(0.25)


def until_frozen(server: Server) -> None:
    """Until the machine that is being frozen is gone."""
    deadline = time.monotonic() + 120
    while server.machines() and time.monotonic() < deadline:
        time.sleep(0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sources", default="pool,snapshot,boot")
    parser.add_argument("--languages", default="")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("BELLJAR_ACCELERATOR", "tcg")
    only = {name for name in args.languages.split(",") if name}
    sources = args.sources.split(",")
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for image in Images(args.data_dir).list():
        # Every image has a shell; the first that has a language is the one that its jobs run in.
        languages = [
            each
            for each in image.manifest.languages
            if each.hello and (each.name != "shell" or image.name == "shell") and each.name not in found
        ]
        languages = [each for each in languages if not only or each.name in only]
        for source in sources if languages else ():
            with server_of(image, args.data_dir, source) as server:
                for language in languages:
                    found.setdefault(language.name, {})[source] = measure(server, language, source, args.rounds)
                    say(language.name, source, found[language.name][source])
    if args.json:
        print(json.dumps({"load": os.getloadavg()[0], "ms": found}))
        return
    print(f"| language | {' | '.join(sources)} |\n|---|{'---|' * len(sources)}")
    for name, by_source in found.items():
        print(f"| {name} | {' | '.join(shown(by_source[source]) for source in sources)} |")


def shown(values: list[tuple[float, float]]) -> str:
    whole, command = (statistics.median(column) for column in zip(*values, strict=True))
    return f"{whole:,.0f} ({command:,.0f})"


def say(language: str, source: str, values: list[tuple[float, float]]) -> None:
    print(f"{language} from {source}: {shown(values)}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)


if __name__ == "__main__":
    main()
