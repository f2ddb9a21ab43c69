"""`belljar sandbox pause`, `resume`, `fork`, `snapshot` and `snapshots`."""

from __future__ import annotations

from typing import Annotated

import typer

from belljar.cli import options
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_line, print_table
from belljar.cli.sandbox_commands import SandboxId
from belljar.cli.server import connect

snapshots = typer.Typer(help="Snapshots of sandboxes: copies from which new ones are made.", no_args_is_help=True)

SnapshotId = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its id, snap_….")]
KeepSecrets = Annotated[
    bool, typer.Option("--keep-secrets", help="Copy the values of secrets, which are in the sandbox's memory.")
]


def pause(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """Keep a sandbox's memory and disks, and end its machine; its commands go on when it is resumed."""
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id).pause()
    if as_json:
        print_json(box)


def resume(sandbox_id: SandboxId, server: ServerFlags, as_json: options.Json = False) -> None:
    """Continue a paused sandbox, and return when it runs."""
    with connect(server) as client:
        box = client.get_sandbox(sandbox_id).resume()
    if as_json:
        print_json(box)


def fork(
    sandbox_id: SandboxId,
    server: ServerFlags,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="How many copies.")] = 1,
    lifetime: Annotated[
        str | None, typer.Option(metavar="TIME", help="Each ends after this time, such as 45m or 12h.")
    ] = None,
    keep_secrets: KeepSecrets = False,
    as_json: options.Json = False,
) -> None:
    """Make copies of a sandbox that go on from where it is now, and print their ids when they run."""
    request = options.without_none(lifetime_seconds=options.seconds(lifetime, "--lifetime"))
    with connect(server) as client:
        boxes = client.get_sandbox(sandbox_id).fork(count, keep_secrets=keep_secrets, **request)
    if as_json:
        print_json(boxes)
        return
    for box in boxes:
        print_line(box.id)


def snapshot(
    sandbox_id: SandboxId, server: ServerFlags, keep_secrets: KeepSecrets = False, as_json: options.Json = False
) -> None:
    """Keep a copy of a sandbox as it is now, and print its id; the sandbox goes on."""
    with connect(server) as client:
        made = client.get_sandbox(sandbox_id).snapshot(keep_secrets=keep_secrets)
    if as_json:
        print_json(made)
    else:
        print_line(made["id"])


@snapshots.command("ls")
def list_snapshots(
    server: ServerFlags,
    limit: Annotated[int, typer.Option(help="Maximum number of snapshots.")] = 20,
    as_json: options.Json = False,
) -> None:
    """List snapshots of sandboxes, newest first."""
    with connect(server) as client:
        page = client.snapshots(limit=limit)
    if as_json:
        print_json(page)
        return
    rows = [
        (each["id"], each["sandbox_id"], each["image"], each["stored_bytes"] >> 20, each["created_at"][:19])
        for each in page["snapshots"]
    ]
    print_table(("ID", "SANDBOX", "IMAGE", "MB", "CREATED"), rows)


@snapshots.command("rm")
def remove_snapshot(snapshot_id: SnapshotId, server: ServerFlags) -> None:
    """Delete a snapshot. Sandboxes that were made from it go on."""
    with connect(server) as client:
        client.delete_snapshot(snapshot_id)
