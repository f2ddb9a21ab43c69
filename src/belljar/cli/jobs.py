"""`belljar submit`, `jobs` and `logs`: what a client of a server does."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.job_request import chosen_globs, job_options, source_of
from belljar.cli.printing import print_json, print_line, print_table, write_bytes
from belljar.cli.server import connect
from belljar.cli.upload import upload

app = typer.Typer(help="Jobs of a server: list, look at, cancel, wait for.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id.")]


def submit(
    source: Annotated[str, typer.Argument(metavar="FILE|DIR|-", help="What to run.")],
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
    artifact: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Files to keep; may be repeated.")] = None,
    label: options.Label = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    priority: Annotated[int, typer.Option(help="Higher runs first.")] = 0,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same submission with this key gives the first job back.")
    ] = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Queue a job on a server and print its id."""
    from belljar.scripts.selection import Selection
    from belljar.settings import load_settings

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
        artifacts=chosen_globs(artifact, wanted=False),
        label=label,
    )
    asked |= options.given(priority=priority or None, idempotency_key=idempotency_key)
    selection = Selection(include=tuple(include or ()), exclude=tuple(exclude or ()))
    max_bytes = load_settings(data_dir=data_dir).max_upload_mb << 20
    with connect(server, api_key, data_dir) as client, source_of(source, stdin, max_bytes) as (path, filename):
        script = upload(client, path, filename, selection, language=language, entrypoint=entrypoint)
        job = client.submit(script_id=script["script_id"], **asked)
    if as_json:
        print_json(job)
    else:
        print_line(str(job["id"]))


@app.command("ls")
def list_jobs(
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Only jobs of this status: queued, running, failed…")
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="K[=V]", help="Only jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many.")] = 20,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """List jobs, newest first."""
    with connect(server, api_key, data_dir) as client:
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


@app.command("get")
def get_job(
    job_id: JobId,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Show one job."""
    with connect(server, api_key, data_dir) as client:
        _show(client.job(job_id), as_json=as_json)


@app.command("cancel")
def cancel_job(
    job_id: JobId,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Stop a job, wherever it is."""
    with connect(server, api_key, data_dir) as client:
        _show(client.cancel(job_id), as_json=as_json)


@app.command("wait")
def wait_for_job(
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Wait no longer than this.")] = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Wait until a job has ended, and show it."""
    with connect(server, api_key, data_dir) as client:
        job = client.wait(job_id, timeout)
        _show(job, as_json=as_json)
    if job["finished_at"] is None:
        raise Failed(124, f"{job_id} is still {job['status']}")


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job has ended.")] = False,
    stream: Annotated[str | None, typer.Option(metavar="stdout|stderr|console|build|all")] = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    data_dir: options.DataDir = None,
) -> None:
    """Print what a job wrote: stdout and stderr in their order, or one stream."""
    with connect(server, api_key, data_dir) as client:
        for chunk in client.logs(job_id, stream=stream, follow=follow):
            write_bytes(chunk)


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    for name in ("id", "status", "exit_code", "signal", "script_id", "image", "attempt", "created_at", "finished_at"):
        if job[name] is not None:
            print_line(f"{name:12} {job[name]}")
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
    """Where the time went, as a small waterfall."""
    phases = list(timings["phases"].items())
    if timings["queue_ms"] is not None:
        phases.insert(0, ("queue", timings["queue_ms"]))
    total = sum(milliseconds for _, milliseconds in phases)
    at = 0.0
    for name, milliseconds in phases:
        start, width = (round(40 * value / total) if total else 0 for value in (at, milliseconds))
        print_line(f"{name:12} {milliseconds:9.1f} ms  {' ' * min(40, start)}{'█' * min(40, max(1, width))}")
        at += milliseconds
