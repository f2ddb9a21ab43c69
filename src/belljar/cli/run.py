"""`belljar run`: one job to its end, here or on a server, as if the script ran in this terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.job_request import chosen_globs, job_options, source_of
from belljar.cli.run_end import report
from belljar.cli.run_request import RunRequest
from belljar.model.errors import InvalidOption


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
    include: options.Include = None,
    exclude: options.Exclude = None,
    server: options.RunServer = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the job as JSON on stdout; the script's output goes to stderr.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the machine's console, and phases.")] = False,
) -> None:
    """Run one job to its end. Exit code: the script's; 124 timed out; 125 belljar could not run it, or what the job
    made did not all arrive; 128 + N a signal ended it, as 141 when nobody reads the output any more.
    """
    from belljar.node.worker.artifact_folder import make_artifacts_folder
    from belljar.scripts.selection import Selection
    from belljar.settings import load_settings

    if artifact and artifacts is None:
        raise InvalidOption("--artifact says which files to keep; say where, with --artifacts DIR", option="artifact")
    settings = load_settings(data_dir=data_dir)
    with source_of(source, stdin, settings.max_upload_mb << 20) as (path, filename):
        if artifacts is not None:
            make_artifacts_folder(artifacts)
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
        request = RunRequest(
            path=path,
            filename=filename,
            options=asked,
            selection=Selection(include=tuple(include or ()), exclude=tuple(exclude or ())),
            language=language,
            entrypoint=entrypoint,
            artifacts_dir=artifacts,
            as_json=as_json,
        )
        if server is not None:
            from belljar.cli.run_remote import run_remote

            end = run_remote(request, settings, server=server, api_key=api_key)
        else:
            from belljar.cli.run_here import run_here

            end = run_here(request, settings, verbose=verbose)
    raise Failed(report(end, as_json=as_json, verbose=verbose))
