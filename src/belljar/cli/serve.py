"""`belljar serve` and `belljar worker`."""

from __future__ import annotations

from asyncio import Event
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.container_init import run_below_init
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
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="off|generate", help="generate: HTTPS with a certificate of a local authority.", show_default="off"
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTTPS with this certificate chain (PEM).", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Private key of that certificate.", show_default=False)
    ] = None,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Run only the API; workers are separate processes.")
    ] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Run the HTTP API and a worker in one process."""
    run_below_init()
    from belljar.app import server
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(
        host=host, port=port, auth=auth, tls=tls, tls_cert=tls_cert, tls_key=tls_key, data_dir=data_dir
    )
    start_logging(settings)

    def announce(url: str) -> None:
        key = "no key is needed" if settings.auth == "off" else f"key in {settings.paths.admin_key}"
        print_stderr(f"belljar serves on {url}, data in {settings.data_dir}, {key}")
        if settings.tls == "generate":
            from belljar.control.api.authority import LocalAuthority
            from belljar.control.api.tls import read_certificate

            authority = LocalAuthority(settings.paths.tls).certificate_file
            print_stderr(
                f"clients trust it with --ca-file {authority}, sha256 {read_certificate(authority).fingerprint}"
            )

    def start(stop: Event, on_ready: Callable[[str], None]) -> Coroutine[Any, Any, None]:
        return server.serve(settings, with_worker=not no_worker, on_ready=on_ready, stop=stop)

    run_until_stopped(start, announce)


def worker(data_dir: options.DataDir = None) -> None:
    """Run a worker for a server started with --no-worker."""
    run_below_init()
    from belljar.app.worker import work
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings)

    def announce(name: str) -> None:
        print_stderr(f"belljar works as {name}, data in {settings.data_dir}")

    run_until_stopped(lambda stop, on_ready: work(settings, on_ready=on_ready, stop=stop), announce)
