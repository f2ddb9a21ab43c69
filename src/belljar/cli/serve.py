"""`belljar serve` and `belljar worker`."""

from __future__ import annotations

from typing import Annotated

import typer

from belljar.cli import options
from belljar.cli.signals import run_async


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 chooses a free one.", show_default="8080")
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(metavar="on|off", help="off: requests need no key; loopback addresses only.", show_default="on"),
    ] = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Run only the API; workers are separate processes.")
    ] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Run the HTTP API and a worker in one process."""
    from belljar.cli.logging import start_logging
    from belljar.cli.serving import serve_until_stopped
    from belljar.settings import load_settings

    settings = load_settings(host=host, port=port, auth=auth, data_dir=data_dir)
    start_logging(settings)
    run_async(serve_until_stopped(settings, with_worker=not no_worker))


def worker(data_dir: options.DataDir = None) -> None:
    """Run a worker for a server started with --no-worker."""
    from belljar.cli.logging import start_logging
    from belljar.cli.serving import work_until_stopped
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings)
    run_async(work_until_stopped(settings))
