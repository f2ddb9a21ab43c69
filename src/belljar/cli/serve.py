"""`belljar serve` and `belljar worker`."""

from __future__ import annotations

from asyncio import Event
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.printing import print_stderr
from belljar.cli.signals import run_until_stopped


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
    from belljar.app import server
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(host=host, port=port, auth=auth, data_dir=data_dir)
    start_logging(settings)

    def announce(url: str) -> None:
        key = "no key is needed" if settings.auth == "off" else f"key in {settings.paths.admin_key}"
        print_stderr(f"belljar serves on {url}, data in {settings.data_dir}, {key}")

    def start(stop: Event, on_ready: Callable[[str], None]) -> Coroutine[Any, Any, None]:
        return server.serve(settings, with_worker=not no_worker, on_ready=on_ready, stop=stop)

    run_until_stopped(start, announce)


def worker(data_dir: options.DataDir = None) -> None:
    """Run a worker for a server started with --no-worker."""
    from belljar.app.worker import work
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings)

    def announce(name: str) -> None:
        print_stderr(f"belljar works as {name}, data in {settings.data_dir}")

    run_until_stopped(lambda stop, on_ready: work(settings, on_ready=on_ready, stop=stop), announce)
