"""`belljar run`: one job to its end, here or on a server, as if the script ran in this terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from belljar.cli.failure import Failed
from belljar.cli.flags import JobFlags, RunServerFlags, artifact_globs
from belljar.cli.run_end import report
from belljar.cli.run_request import RunRequest
from belljar.cli.source import open_source
from belljar.model.errors import InvalidOption


def run(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR|-", help="A file, an archive, a folder, or - for stdin.")],
    flags: JobFlags,
    server: RunServerFlags,
    args: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="Arguments for the script.")] = None,
    artifacts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files that the job wrote in its working folder.")
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Keep only these files, or with ! all but these. Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job as JSON on stdout; the script's output goes to stderr.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Show the machine's console and the time of each phase.")
    ] = False,
) -> None:
    """Run one job to its end. Exit code: the script's; 124 timed out; 125 belljar could not run the job, or not all of
    its output and artifacts arrived; 128 + N ended by signal N (141: the reader of the output has gone).
    """
    from belljar.node.worker.artifact_folder import make_artifacts_folder
    from belljar.settings import load_settings

    if artifact and artifacts is None:
        raise InvalidOption(
            "--artifact names files to keep; also give their folder, with --artifacts DIR", option="artifact"
        )
    settings = load_settings(data_dir=server.data_dir)
    with open_source(source, flags.stdin, settings.max_upload_mb << 20) as (path, filename):
        if artifacts is not None:
            make_artifacts_folder(artifacts)
        request = RunRequest(
            path=path,
            filename=filename,
            options=flags.job_options(args, artifact_globs(artifact, wanted=artifacts is not None)),
            selection=flags.selection(),
            language=flags.language,
            entrypoint=flags.entrypoint,
            artifacts_dir=artifacts,
            as_json=as_json,
        )
        if server.server is not None:
            from belljar.cli.run_remote import run_remote

            end = run_remote(request, settings, server)
        else:
            from belljar.cli.run_here import run_here

            end = run_here(request, settings, verbose=verbose)
    raise Failed(report(end, as_json=as_json, verbose=verbose))
