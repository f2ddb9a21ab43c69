"""`belljar run`: one job to its end, here or on a server, as if the script ran in this terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from belljar.cli import options
from belljar.cli.failure import Failed, exit_code_of
from belljar.cli.job_request import chosen_globs, job_options, source_of
from belljar.cli.printing import complain, print_json, printable

#: belljar could not run the job; what is below is the script's own exit code.
CANNOT_RUN = 125
TIMED_OUT = 124
INTERRUPTED = 130


def run(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR|-", help="A file, an archive, a folder, or - for stdin.")],
    args: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="Arguments for the script.")] = None,
    image: options.Image = None,
    language: options.Language = None,
    entrypoint: options.Entrypoint = None,
    vcpus: options.Vcpus = None,
    memory: options.Memory = None,
    disk: options.Disk = None,
    disk_mb_per_second: options.DiskRate = None,
    disk_iops: options.DiskIops = None,
    network_mbit_per_second: options.NetworkRate = None,
    timeout: options.Timeout = None,
    env: options.Env = None,
    stdin: options.Stdin = None,
    egress: options.Egress = "none",
    artifacts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for what the job wrote into its working folder.")
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only these of its files, or with ! all but these; may be repeated."),
    ] = None,
    label: options.Label = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job as JSON on stdout; the script's output goes to stderr.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the machine's console, and phases.")] = False,
) -> None:
    """Run one job to its end. Exit code: the script's; 124 timed out; 125 belljar could not run it."""
    try:
        asked = job_options(
            args=args,
            image=image,
            vcpus=vcpus,
            memory=memory,
            disk=disk,
            disk_mb_per_second=disk_mb_per_second,
            disk_iops=disk_iops,
            network_mbit_per_second=network_mbit_per_second,
            timeout=timeout,
            env=env,
            stdin=stdin,
            egress=egress,
            artifacts=chosen_globs(artifact, wanted=artifacts is not None),
            label=label,
        )
        with source_of(source) as (path, filename):
            if server is not None:
                from belljar.cli.run_remote import run_remote

                out, err = _outputs(as_json=as_json)
                job = run_remote(
                    path,
                    filename,
                    asked,
                    language=language,
                    entrypoint=entrypoint,
                    stdout=out,
                    stderr=err,
                    artifacts_dir=artifacts,
                    server=server,
                    api_key=api_key,
                    data_dir=data_dir,
                )
            else:
                job = _run_here(
                    path, filename, asked, language, entrypoint, artifacts, data_dir, as_json=as_json, verbose=verbose
                )
    except Exception as error:  # noqa: BLE001 (a bug is raised again in there)
        exit_code_of(error)
        raise Failed(CANNOT_RUN) from None
    if as_json:
        print_json(job)
    _explain(job, verbose=verbose)
    raise Failed(_exit_code(job))


def _outputs(*, as_json: bool) -> tuple[BinaryIO, BinaryIO]:
    sys.stdout.flush()
    return (sys.stderr.buffer if as_json else sys.stdout.buffer), sys.stderr.buffer


def _run_here(
    path: Path,
    filename: str,
    asked: dict[str, Any],
    language: str | None,
    entrypoint: str | None,
    artifacts: Path | None,
    data_dir: Path | None,
    *,
    as_json: bool,
    verbose: bool,
) -> dict[str, Any]:
    from pydantic import ValidationError

    from belljar.cli.logging import start_logging
    from belljar.errors import InvalidOption
    from belljar.jobs.model import JobOptions
    from belljar.settings import load_settings
    from belljar.worker.embedded import EmbeddedRun, run_embedded

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, None if verbose else "error")
    try:
        job_asked = JobOptions(**asked)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidOption(f"{name}: {str(first['msg']).removeprefix('Value error, ')}", option=name) from None
    stdout, stderr = _outputs(as_json=as_json)
    embedded = EmbeddedRun(
        source=path,
        filename=filename,
        options=job_asked,
        language=language,
        entrypoint=entrypoint,
        stdout=stdout,
        stderr=stderr,
        artifacts_dir=artifacts,
        console=partial(_show, "console") if verbose else lambda _: None,
        build=_Lines("build").show if verbose else lambda _: None,
        notice=complain,
    )

    async def until_ended() -> dict[str, Any]:
        cancel = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, cancel.set)
        return (await run_embedded(embedded, settings, cancel)).public()

    return asyncio.run(until_ended())


def _show(stream: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        print(f"{stream}| {printable(line)}", file=sys.stderr)


class _Lines:
    """Shows a stream that comes in pieces as it grows, line by line."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._rest = b""

    def show(self, data: bytes) -> None:
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            _show(self._stream, whole)


def _explain(job: dict[str, Any], *, verbose: bool) -> None:
    if job["error"]:
        complain(job["error"]["message"])
    elif job["status"] == "cancelled":
        complain("cancelled")
    elif job["signal"]:
        complain(f"the script was ended by {job['signal']}")
    if verbose:
        for name, milliseconds in job["timings"]["phases"].items():
            print(f"{name:10} {milliseconds:9.1f} ms", file=sys.stderr)


def _exit_code(job: dict[str, Any]) -> int:
    if job["status"] == "timed_out":
        return TIMED_OUT
    if job["status"] == "cancelled":
        return INTERRUPTED
    if job["exit_code"] is not None:
        return int(job["exit_code"])
    if job["signal"]:
        with contextlib.suppress(ValueError, KeyError):
            return 128 + signal.Signals[job["signal"]].value
        return 128
    return CANNOT_RUN
