"""Commands about this machine: `serve`, `worker`, `doctor`, `bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.signals import run_async


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: a free one.", show_default="8080")] = None,
    auth: Annotated[
        str | None,
        typer.Option(metavar="on|off", help="off: no keys, for this machine only.", show_default="on"),
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Only the API; workers run elsewhere.")] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Serve the HTTP API and work, in one process."""
    from belljar.cli.logging import start_logging
    from belljar.cli.serving import serve_until_stopped
    from belljar.settings import load_settings

    settings = load_settings(host=host, port=port, auth=auth, data_dir=data_dir)
    start_logging(settings)
    run_async(serve_until_stopped(settings, with_worker=not no_worker))


def worker(data_dir: options.DataDir = None) -> None:
    """Work alone, beside a server that was started with --no-worker."""
    from belljar.cli.logging import start_logging
    from belljar.cli.serving import work_until_stopped
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings)
    run_async(work_until_stopped(settings))


def doctor(data_dir: options.DataDir = None, as_json: options.Json = False) -> None:
    """Check what this machine can run, and say what to change."""
    from belljar.cli.logging import start_logging
    from belljar.doctor.checks import check_host, print_checks
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    checks = run_async(check_host(settings))
    print_checks(checks, as_json=as_json)
    if any(check.level == "fail" for check in checks):
        raise Failed(1)


def bench(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Jobs for each latency figure.")] = 20,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="How long jobs are sent for each throughput figure.")
    ] = 10,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Measure this machine: latency, throughput and memory, beside what else is installed."""
    from belljar.bench.figures import print_figures
    from belljar.bench.measurements import measure
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    print_figures(run_async(measure(settings, rounds, seconds)), as_json=as_json)
