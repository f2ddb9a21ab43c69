"""`belljar bench`: measure this host and print the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from belljar.bench.load import Arrivals
from belljar.cli import options
from belljar.cli.printing import print_json, print_message, print_table
from belljar.cli.signals import run_async

_ROUNDS = 20
_SECONDS = 10.0
_SUSTAINED_SECONDS = 40.0


def bench(
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Jobs per latency figure (default 20); runs of --sustained (default 1).",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=600,
            help="Duration of each throughput figure (default 10), or rate of --sustained (default 40).",
            show_default=False,
        ),
    ] = None,
    sustained: Annotated[bool, typer.Option("--sustained", help="Measure latency over load instead.")] = False,
    rates: Annotated[str, typer.Option(metavar="LIST", help="Jobs per second of --sustained.")] = "0.5,1,1.5,2,3",
    arrivals: Annotated[
        list[Arrivals] | None,
        typer.Option(
            help="Intervals of --sustained, equal or random; may be repeated. Default: both.", show_default=False
        ),
    ] = None,
    trees: Annotated[
        list[Path] | None,
        typer.Option(
            "--tree",
            metavar="DIR",
            help="Another version of belljar, measured beside by --sustained.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="List what waiting clones and processes take of memory, by cause, instead.")
    ] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Measure this host's latency, throughput and memory. Measures other installed runtimes too, to compare."""
    from belljar.bench.measurements import measure
    from belljar.bench.memory import measure_memory
    from belljar.bench.sustained import Plan, measure_sustained, parse_rates
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    if memory:
        _print(run_async(measure_memory(settings)), as_json=as_json)
        return
    if not sustained:
        _print(run_async(measure(settings, rounds or _ROUNDS, seconds or _SECONDS)), as_json=as_json)
        return
    plan = Plan(
        rates=parse_rates(rates),
        arrivals=tuple(arrivals or Arrivals),
        seconds=seconds or _SUSTAINED_SECONDS,
        trees=tuple(trees or ()),
        rounds=rounds or 1,
    )
    _print_sustained(run_async(measure_sustained(settings, plan, print_message)), as_json=as_json)


def _print(measured: dict[str, Any], *, as_json: bool) -> None:
    """Print the host and a table of the figures."""
    if as_json:
        print_json(measured)
        return
    _print_machine(measured["machine"])
    rows = [
        (each["name"], each["unit"], each["p50"], each["p90"], each["p99"], each["samples"])
        for each in measured["figures"]
    ]
    print_table(("WHAT", "UNIT", "P50", "P90", "P99", "SAMPLES"), rows)


def _print_sustained(measured: dict[str, Any], *, as_json: bool) -> None:
    """Print the host and tables of latency over load and of the highest rates."""
    if as_json:
        print_json(measured)
        return
    _print_machine(measured["machine"])
    rows = [
        (
            each["target"],
            each["arrivals"],
            each["rate_per_second"],
            each["p50_ms"],
            each["p90_ms"],
            each["p99_ms"],
            "-" if each["hit_rate"] is None else each["hit_rate"],
            each["jobs"],
            each["failed"],
        )
        for each in measured["sustained"]
    ]
    print_table(("WHAT", "ARRIVALS", "PER SECOND", "P50 MS", "P90 MS", "P99 MS", "FROM POOL", "JOBS", "FAILED"), rows)
    highest = [
        (each["target"], each["callers"], each["jobs_per_second"], each["hit_rate"]) for each in measured["highest"]
    ]
    print_table(("WHAT", "AT ONCE", "JOBS PER SECOND", "FROM POOL"), highest)


def _print_machine(machine: dict[str, Any]) -> None:
    print(
        f"{machine['cpus']} × {machine['cpu']}, {machine['memory_mb']} MB, Linux {machine['kernel']}, "
        f"{machine['hypervisor']} with {machine['accelerator']}, load {machine['load']:.1f}"
    )
