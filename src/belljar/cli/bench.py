"""`belljar bench`: measure this host and print the figures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.printing import print_json, print_table
from belljar.cli.signals import run_async


def bench(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Jobs per latency figure.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Duration of each throughput figure.")] = 10,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Measure this host's latency, throughput and memory. Measures other installed runtimes too, to compare."""
    from belljar.bench.measurements import measure
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    _print(run_async(measure(settings, rounds, seconds)), as_json=as_json)


def _print(measured: dict[str, Any], *, as_json: bool) -> None:
    """Print the host and a table of the figures."""
    if as_json:
        print_json(measured)
        return
    machine = measured["machine"]
    print(
        f"{machine['cpus']} × {machine['cpu']}, {machine['memory_mb']} MB, Linux {machine['kernel']}, "
        f"{machine['hypervisor']} with {machine['accelerator']}, load {machine['load']:.1f}"
    )
    rows = [
        (each["name"], each["unit"], each["p50"], each["p90"], each["p99"], each["samples"])
        for each in measured["figures"]
    ]
    print_table(("WHAT", "UNIT", "P50", "P90", "P99", "SAMPLES"), rows)
