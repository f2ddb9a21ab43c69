"""Options that several commands share, and how settings are made of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from belljar.model.errors import InvalidOption

#: As the HTTP API has it (jobs/model.py, which takes long to load).
_MAX_STDIN_BYTES = 16 << 20

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder that holds everything belljar keeps.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Server = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="A server; by default the one of this machine.", show_default=False),
]
RunServer = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="Run it on this server; by default on this machine, without one."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key", metavar="KEY", help="Key for it; by default, on this machine, its admin key.", show_default=False
    ),
]
Image = Annotated[str | None, typer.Option(help="Image to run in; by default the one for the language.")]
Language = Annotated[str | None, typer.Option(help="Language; by default told from the file's name or #! line.")]
Entrypoint = Annotated[str | None, typer.Option(help="File to run in a folder or archive.")]
Vcpus = Annotated[int | None, typer.Option(help="Virtual CPUs.", show_default=False)]
Memory = Annotated[int | None, typer.Option(metavar="MB", help="Memory of the machine.", show_default=False)]
Disk = Annotated[int | None, typer.Option(metavar="MB", help="A scratch disk for what the job writes.")]
DiskRate = Annotated[
    float | None, typer.Option("--disk-mb-per-second", metavar="MB", help="What each disk may read and write.")
]
DiskIops = Annotated[int | None, typer.Option("--disk-iops", help="The same in operations per second.")]
NetworkRate = Annotated[
    float | None, typer.Option("--network-mbit-per-second", metavar="MBIT", help="What its network may carry.")
]
Timeout = Annotated[float | None, typer.Option(metavar="S", help="Seconds until the job is stopped.")]
Env = Annotated[list[str] | None, typer.Option(metavar="K=V", help="Environment variable; may be repeated.")]
Include = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Of a folder, also what is left out by default.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Of a folder, all but this; as in .gitignore.")
]
Stdin = Annotated[
    str | None, typer.Option(metavar="FILE", help="File for the job's standard input; - is belljar's own.")
]
Egress = Annotated[str, typer.Option(metavar="none|open|HOST,…", help="What the job may reach over the network.")]
Label = Annotated[list[str] | None, typer.Option(metavar="K=V", help="Label; may be repeated.")]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """K=V words as a mapping. Raises InvalidOption."""
    found = {}
    for word in given or []:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidOption(f"{option} takes NAME=VALUE, not {word[:80]!r}", option=option)
        found[name] = value
    return found


def stdin_bytes(name: str | None) -> bytes | None:
    """The bytes of --stdin. Raises InvalidOption when the file cannot be read, or is more than a job's may be."""
    if name is None:
        return None
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MAX_STDIN_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_MAX_STDIN_BYTES + 1)
    except OSError as error:
        raise InvalidOption(f"--stdin: cannot read {name}: {error.strerror}", option="stdin") from None
    if len(data) > _MAX_STDIN_BYTES:
        raise InvalidOption(
            f"--stdin: {name} has over {_MAX_STDIN_BYTES >> 20} MB; put the data into the script's folder",
            option="stdin",
        )
    return data


def given(**options: Any) -> dict[str, Any]:
    """The options that were given: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
