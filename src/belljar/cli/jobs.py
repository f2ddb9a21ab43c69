"""`belljar submit`, `belljar jobs` and `belljar logs`: the commands of a server's client."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.flags import JobFlags, ServerFlags, artifact_globs
from belljar.cli.flows import FlowLimit, Refused, print_flows, verdict_of
from belljar.cli.printing import print_json, print_line, print_table, write_bytes
from belljar.cli.server import connect
from belljar.cli.source import open_source
from belljar.cli.upload import upload
from belljar.cli.usage_series import show_usage_series

app = typer.Typer(help="List, show, cancel and wait for jobs of a server.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Id of a job.")]


def submit(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR|-", help="A file, an archive, a folder, or - for stdin.")],
    flags: JobFlags,
    server: ServerFlags,
    args: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS…]", help="Arguments for the script.")] = None,
    artifact: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Files to keep. Repeatable.")] = None,
    priority: Annotated[int, typer.Option(help="Jobs of a higher priority start first.")] = 0,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second submission with the same key returns the first job.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Queue a job on a server and print its id."""
    from belljar.settings import load_settings

    job_options = flags.job_options(args, artifact_globs(artifact, wanted=False))
    job_options |= options.without_none(priority=priority or None, idempotency_key=idempotency_key)
    max_bytes = load_settings(data_dir=server.data_dir).max_upload_mb << 20
    with connect(server) as client, open_source(source, flags.stdin, max_bytes) as (path, filename):
        script = upload(client, path, filename, flags.selection(), language=flags.language, entrypoint=flags.entrypoint)
        job = client.submit(script_id=script["script_id"], **job_options)
    if as_json:
        print_json(job)
    else:
        print_line(str(job["id"]))


@app.command("ls")
def list_jobs(
    server: ServerFlags,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Only jobs of this status: queued, running, failed…")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="K[=V]", help="Only jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of jobs.")] = 20,
    as_json: options.Json = False,
) -> None:
    """List jobs, newest first."""
    with connect(server) as client:
        page = client.jobs(status=status, label=label, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = []
    for job in page["jobs"]:
        total_ms = sum(job["timings"][name] or 0 for name in ("queue_ms", "machine_ms", "run_ms"))
        ended = job["exit_code"] if job["exit_code"] is not None else job["signal"]
        rows.append(
            (job["id"], job["status"], ended, f"{total_ms / 1000:.2f} s", job["entrypoint"], job["created_at"][:19])
        )
    print_table(("ID", "STATUS", "EXIT", "TOOK", "ENTRYPOINT", "CREATED"), rows)


@app.command("flows")
def show_flows(
    job_id: JobId,
    server: ServerFlags,
    refused: Refused = False,
    limit: FlowLimit = 100,
    as_json: options.Json = False,
) -> None:
    """Show what a job's machine talked to, and what was refused."""
    with connect(server) as client:
        report = client.flows(job_id, verdict=verdict_of(refused), limit=limit)
    if as_json:
        print_json(report)
    else:
        print_flows(report)


@app.command("get")
def get_job(
    job_id: JobId,
    server: ServerFlags,
    as_json: options.Json = False,
) -> None:
    """Show one job."""
    with connect(server) as client:
        _show(client.job(job_id), as_json=as_json)


@app.command("cancel")
def cancel_job(
    job_id: JobId,
    server: ServerFlags,
    as_json: options.Json = False,
) -> None:
    """Cancel a job, queued or running."""
    with connect(server) as client:
        _show(client.cancel(job_id), as_json=as_json)


@app.command("wait")
def wait_for_job(
    job_id: JobId,
    server: ServerFlags,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Stop waiting after this many seconds.")] = None,
    as_json: options.Json = False,
) -> None:
    """Wait until a job has ended, and show it."""
    with connect(server) as client:
        job = client.wait(job_id, timeout)
        _show(job, as_json=as_json)
    if job["finished_at"] is None:
        raise Failed(124, f"{job_id} is still {job['status']}")


@app.command("metrics")
def job_metrics(
    job_id: JobId,
    server: ServerFlags,
    as_json: options.Json = False,
) -> None:
    """Show what a job's machine used, second by second."""
    with connect(server) as client:
        series = client.job_metrics(job_id)
    if as_json:
        print_json(series)
    else:
        show_usage_series(series)


def logs(
    job_id: JobId,
    server: ServerFlags,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Continue until the job has ended.")] = False,
    stream: Annotated[str | None, typer.Option(metavar="stdout|stderr|console|build|all")] = None,
) -> None:
    """Print a job's output: stdout and stderr in order, or one stream."""
    with connect(server) as client:
        for chunk in client.logs(job_id, stream=stream, follow=follow):
            write_bytes(chunk)


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    for name in ("id", "status", "exit_code", "signal", "script_id", "image", "attempt", "created_at", "finished_at"):
        if job[name] is not None:
            print_line(f"{name:12} {job[name]}")
    if job.get("waiting_for"):
        waiting = job["waiting_for"]
        print_line(f"{'waiting for':12} the quota {waiting['quota']}: {waiting['used']:g} of {waiting['limit']} used")
    if job["error"]:
        print_line(f"{'error':12} {job['error']['code']}: {job['error']['message']}")
    for lost in job["lost_attempts"]:
        print_line(f"{'lost':12} attempt {lost['attempt']}: {lost['message']}")
    _show_phases(job["timings"])
    usage = job["usage"]
    if usage["cpu_seconds"] is not None:
        print_line(f"{'usage':12} {usage['cpu_seconds']:.2f} s of CPU, {usage['max_memory_mb']:.1f} MB at most")
    for artifact in job["kept_artifacts"]:
        print_line(f"{'artifact':12} {artifact['path']} ({artifact['size_bytes']} bytes)")


def _show_phases(timings: dict[str, Any]) -> None:
    """Print the time of each phase as a waterfall."""
    phases = list(timings["phases"].items())
    if timings["queue_ms"] is not None:
        phases.insert(0, ("queue", timings["queue_ms"]))
    total = sum(milliseconds for _, milliseconds in phases)
    at = 0.0
    for name, milliseconds in phases:
        start, width = (round(40 * value / total) if total else 0 for value in (at, milliseconds))
        print_line(f"{name:12} {milliseconds:9.1f} ms  {' ' * min(40, start)}{'█' * min(40, max(1, width))}")
        at += milliseconds
