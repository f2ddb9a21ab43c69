"""`belljar run` without a server: the job in a machine of this host."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import TYPE_CHECKING

from belljar.cli.printing import print_message, print_stderr, printable
from belljar.cli.run_end import RunEnd
from belljar.cli.signals import run_until_signal
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.cli.run_request import RunRequest
    from belljar.model.job import Job
    from belljar.node.worker.local_run import EmbeddedRun
    from belljar.settings import Settings


def run_here(request: RunRequest, settings: Settings, *, verbose: bool) -> RunEnd:
    """Run the job to its end; a signal, or a reader that goes away, cancels it. Raises BelljarError, Stopped."""
    from pydantic import ValidationError

    from belljar.cli.logging import start_logging
    from belljar.model.job import JobOptions
    from belljar.node.worker.artifact_folder import FolderArtifacts
    from belljar.node.worker.local_run import EmbeddedRun

    start_logging(settings, None if verbose else "error")
    try:
        job_options = JobOptions(**request.options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidOption(f"{name}: {str(first['msg']).removeprefix('Value error, ')}", option=name) from None
    cancel = asyncio.Event()
    closed: list[bool] = []

    def output_closed() -> None:
        closed.append(True)
        cancel.set()

    sys.stdout.flush()
    artifacts = FolderArtifacts(request.artifacts_dir) if request.artifacts_dir is not None else None
    embedded = EmbeddedRun(
        source=request.path,
        filename=request.filename,
        options=job_options,
        language=request.language,
        entrypoint=request.entrypoint,
        selection=request.selection,
        stdout=2 if request.as_json else 1,
        stderr=2,
        artifacts=artifacts,
        console=partial(_show, "console") if verbose else lambda _: None,
        build=_LinePrinter("build").show if verbose else lambda _: None,
        notice=print_message,
        closed=output_closed,
    )
    job, stopped = _run_until_ended(embedded, settings, cancel)
    if artifacts is not None:
        artifacts.abandon("the transfer was interrupted")
    return RunEnd(
        job=job.public(),
        not_kept=artifacts.failed if artifacts is not None else None,
        stopped=stopped,
        output_closed=bool(closed),
    )


def _run_until_ended(embedded: EmbeddedRun, settings: Settings, cancel: asyncio.Event) -> tuple[Job, int | None]:
    """The job, and the signal that ended it. Raises Stopped where there was no job yet."""
    from belljar.node.worker.local_run import run_embedded

    def request_stop() -> bool:
        cancel.set()
        return embedded.cancellable.is_set()

    return run_until_signal(run_embedded(embedded, settings, cancel), request_stop)


def _show(stream: str, data: bytes) -> None:
    for line in data.decode(errors="replace").splitlines():
        print_stderr(f"{stream}| {printable(line)}")


class _LinePrinter:
    """Shows a stream that comes in pieces as it grows, line by line."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._rest = b""

    def show(self, data: bytes) -> None:
        whole, newline, self._rest = (self._rest + data).rpartition(b"\n")
        if newline:
            _show(self._stream, whole)
