"""`belljar sandbox cp` and `files`: the files of a sandbox."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from belljar.cli import options
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_message, print_table
from belljar.cli.server import connect
from belljar.model.errors import InvalidOption

_REMOTE = re.compile(r"(sb_\w+):(.*)\Z", re.S)
_SHOWN_NAMES = 5


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A path here, or ID:PATH in a sandbox.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A path here, or ID:PATH in a sandbox.")],
    server: ServerFlags,
    max_mb: Annotated[
        int, typer.Option(metavar="MB", min=1, help="Refuse more than this from a sandbox, which could fill this disk.")
    ] = 10_240,
) -> None:
    """Copy a file, or a folder with what is in it, into a sandbox or out of it.

    TARGET is the new path itself, or ends with a slash for a folder to copy into. Nothing is written through a link or
    outside of TARGET on this host.
    """
    here, there = _REMOTE.match(source), _REMOTE.match(target)
    if (here is None) == (there is None):
        raise InvalidOption("cp takes one path here and one ID:PATH, such as sb_01M8…:out.csv", option="source")
    with connect(server) as client:
        if there is not None:
            path = _target(there[2], Path(source).name)
            try:
                client.get_sandbox(there[1]).files.upload(source, path)
            except OSError as error:
                raise InvalidOption(f"cannot read {source}: {error.strerror or error}", option="source") from None
            return
        assert here is not None
        name = here[2].rstrip("/").rpartition("/")[2]
        left_out = client.get_sandbox(here[1]).files.download(
            here[2], _local_target(target, name), max_bytes=max_mb << 20
        )
    if left_out:
        shown = ", ".join(left_out[:_SHOWN_NAMES]) + (", …" if len(left_out) > _SHOWN_NAMES else "")
        print_message(f"left out {len(left_out)} links and devices: {shown}")


def list_files(
    sandbox_id: Annotated[str, typer.Argument(metavar="ID", help="Id of a sandbox.")],
    server: ServerFlags,
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A folder. Default: /work.")] = ".",
    depth: Annotated[int, typer.Option(help="How many levels deep.")] = 1,
    as_json: options.Json = False,
) -> None:
    """List the files of a folder in a sandbox."""
    with connect(server) as client:
        entries = client.get_sandbox(sandbox_id).files.list(path, depth=depth)
    if as_json:
        print_json(entries)
        return
    rows = [(each["kind"], each["size_bytes"], _time(each["modified_ns"]), each["path"]) for each in entries]
    print_table(("KIND", "BYTES", "MODIFIED", "PATH"), rows)


def _target(path: str, name: str) -> str:
    """Return the path in the sandbox; the source's name below a folder that ends with a slash."""
    if path.endswith("/") or not path:
        return f"{path}{name}"
    return path


def _local_target(target: str, name: str) -> Path:
    if target.endswith("/") or Path(target).name in ("", ".."):
        if not name or name in (".", ".."):
            raise InvalidOption(f"the source has no name; name the target itself instead of {target}", option="target")
        return Path(target) / name
    return Path(target)


def _time(modified_ns: int) -> str:
    return datetime.fromtimestamp(modified_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
