"""`belljar sandbox`: create, list, extend and remove sandboxes, and what is in them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from belljar.cli import options, sandbox_code, sandbox_commands, sandbox_files, sandbox_freezing, sandbox_ports
from belljar.cli.flags import ServerFlags
from belljar.cli.flows import FlowLimit, Refused, print_flows, verdict_of
from belljar.cli.printing import print_json, print_line, print_table
from belljar.cli.server import connect
from belljar.cli.usage_series import show_usage_series

app = typer.Typer(help="Sandboxes: machines that stay, to run commands in.", no_args_is_help=True)

SandboxId = sandbox_commands.SandboxId


@app.command()
def create(
    server: ServerFlags,
    template: Annotated[
        str | None, typer.Argument(metavar="[TEMPLATE]", help="A language or an image. Default: python.")
    ] = None,
    snapshot: Annotated[str | None, typer.Option(metavar="ID", help="Go on from this snapshot of a sandbox.")] = None,
    vcpus: Annotated[int | None, typer.Option(help="Virtual CPUs.", show_default=False)] = None,
    memory: Annotated[int | None, typer.Option(metavar="MB", help="Memory of the machine.", show_default=False)] = None,
    disk: Annotated[int | None, typer.Option(metavar="MB", help="Size of a disk for what is written.")] = None,
    egress: Annotated[
        str | None, typer.Option(metavar="none|open|HOST,…", help="What it may reach. Default: none.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Variable of every command. Repeatable.")] = None,
    secret: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Secret for every command.")] = None,
    mask: Annotated[bool, typer.Option("--mask/--no-mask", help="Replace secrets by *** in output.")] = True,
    root: Annotated[bool, typer.Option("--root", help="Run its commands as root instead of the image's user.")] = False,
    lifetime: Annotated[
        str | None, typer.Option(metavar="TIME", help="It ends after this time, such as 45m or 12h.")
    ] = None,
    idle: Annotated[
        str | None, typer.Option(metavar="TIME", help="It ends when nobody has used it for so long.")
    ] = None,
    public_port: Annotated[
        list[int] | None, typer.Option(metavar="PORT", help="Port that anyone may reach by its host name. Repeatable.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Label. Repeatable.")] = None,
    as_json: options.Json = False,
) -> None:
    """Create a sandbox and print its id when it runs."""
    request = options.without_none(
        snapshot=snapshot,
        shape=options.without_none(vcpus=vcpus, memory_mb=memory, disk_mb=disk) or None,
        egress=egress,
        user="root" if root else None,
        env=options.pairs(env, "--env") or None,
        secrets=secret or None,
        mask_secrets=None if mask else False,
        lifetime_seconds=options.seconds(lifetime, "--lifetime"),
        idle_seconds=options.seconds(idle, "--idle"),
        public_ports=public_port or None,
        labels=options.pairs(label, "--label") or None,
    )
    with connect(server) as client:
        box = client.create_sandbox(template, **request)
    if as_json:
        print_json(box)
    else:
        print_line(box.id)


@app.command("ls")
def list_sandboxes(
    server: ServerFlags,
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="Only these: running, ended…")] = None,
    label: Annotated[str | None, typer.Option(metavar="K[=V]", help="Only sandboxes with this label.")] = None,
    limit: Annotated[int, typer.Option(help="Maximum number of sandboxes.")] = 20,
    as_json: options.Json = False,
) -> None:
    """List sandboxes, newest first."""
    with connect(server) as client:
        page = client.sandboxes(status=status, label=label, limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (each["id"], each["status"], each["image"], each["memory_mb"], each["created_at"][:19], each["expires_at"][:19])
        for each in page["sandboxes"]
    ]
    print_table(("ID", "STATUS", "IMAGE", "MB", "CREATED", "EXPIRES"), rows)


@app.command("get")
def get_sandbox(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """Show one sandbox."""
    with connect(server) as client:
        _show(client.get_sandbox(sandbox_id), as_json=as_json)


@app.command()
def extend(
    sandbox_id: SandboxId,
    lifetime: Annotated[str, typer.Argument(metavar="TIME", help="It ends so long from now, such as 45m or 12h.")],
    server: ServerFlags,
    as_json: options.Json = False,
) -> None:
    """Let a sandbox end later, or earlier."""
    seconds = options.seconds(lifetime, "TIME")
    assert seconds is not None
    with connect(server) as client:
        _show(client.get_sandbox(sandbox_id).extend(seconds), as_json=as_json)


@app.command("rm")
def remove_sandbox(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """End a sandbox with everything in it."""
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id).delete()
    if as_json:
        print_json(box)


@app.command("flows")
def show_flows(
    sandbox_id: SandboxId,
    server: ServerFlags,
    refused: Refused = False,
    limit: FlowLimit = 100,
    as_json: options.Json = False,
) -> None:
    """Show what a sandbox's machine talked to, and what was refused."""
    with connect(server) as client:
        report = client.get_sandbox(sandbox_id).flows(verdict=verdict_of(refused), limit=limit)
    if as_json:
        print_json(report)
    else:
        print_flows(report)


@app.command()
def metrics(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """Show what a sandbox's machine used, second by second."""
    with connect(server) as client:
        series = client.get_sandbox(sandbox_id).metrics_series()
    if as_json:
        print_json(series)
    else:
        show_usage_series(series)


app.command("pause")(sandbox_freezing.pause)
app.command("resume")(sandbox_freezing.resume)
app.command("fork")(sandbox_freezing.fork)
app.command("snapshot")(sandbox_freezing.snapshot)
app.add_typer(sandbox_freezing.snapshots, name="snapshots")
app.command("ports")(sandbox_ports.ports)
app.command("exec")(sandbox_commands.execute)
app.command("shell")(sandbox_commands.shell)
app.command("run")(sandbox_code.run_code)
app.command("contexts")(sandbox_code.contexts)
app.command("cp")(sandbox_files.copy)
app.command("files")(sandbox_files.list_files)


def _show(box: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(box)
        return
    for name in (
        "id",
        "status",
        "image",
        "vcpus",
        "memory_mb",
        "disk_mb",
        "node",
        "created_at",
        "paused_at",
        "expires_at",
    ):
        if box.get(name) is not None:
            print_line(f"{name:12} {box[name]}")
    if box["status"] == "running":
        left = datetime.fromisoformat(box["expires_at"]) - datetime.now(UTC)
        print_line(f"{'ends in':12} {max(0, round(left.total_seconds()))} s")
    if box.get("end"):
        print_line(f"{'end':12} {box['end']['reason']}: {box['end']['message']}")
