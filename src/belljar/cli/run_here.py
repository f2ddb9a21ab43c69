"""`belljar run` without a server: the job in a machine of this host."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from belljar.cli.run_end import RunEnd
from belljar.cli.signals import run_until_signal
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.cli.run_request import RunRequest
    from belljar.model.job_options import JobOptions
    from belljar.settings import Settings


def run_here(request: RunRequest, settings: Settings, *, verbose: bool) -> RunEnd:
    """Run the job to its end; a signal, or a closed output, cancels it. Raises BelljarError, Stopped."""
    from belljar.app.local_run import LocalRequest, run_locally
    from belljar.cli.logging import start_logging
    from belljar.cli.terminal import TerminalObserver

    start_logging(settings, None if verbose else "error")
    local_request = LocalRequest(
        source=request.path,
        filename=request.filename,
        options=_options(request),
        language=request.language,
        entrypoint=request.entrypoint,
        selection=request.selection,
    )
    cancel = asyncio.Event()
    sys.stdout.flush()
    observer = TerminalObserver(
        stdout=2 if request.as_json else 1,
        stderr=2,
        artifacts_dir=request.artifacts_dir,
        verbose=verbose,
        cancel=cancel,
    )

    def request_cancel() -> bool:
        cancel.set()
        return local_request.cancellable.is_set()

    job, stopped = run_until_signal(run_locally(local_request, settings, observer, cancel), request_cancel)
    return RunEnd(job=job.public(), not_kept=observer.not_kept(), stopped=stopped, output_closed=observer.output_closed)


def _options(request: RunRequest) -> JobOptions:
    """Return the job's options. Raises InvalidOption."""
    from pydantic import ValidationError

    from belljar.model.job_options import JobOptions

    try:
        return JobOptions(**request.options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "options"
        raise InvalidOption(f"{name}: {str(first['msg']).removeprefix('Value error, ')}", option=name) from None
