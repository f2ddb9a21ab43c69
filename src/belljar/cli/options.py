"""Options that many commands take, and the values that are parsed from them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from belljar.model.errors import InvalidOption

#: The limit of the HTTP API (model/job.py, which takes long to load).
_MAX_STDIN_BYTES = 16 << 20

_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])\Z")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Folder that holds all of belljar's data.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key for the server. Default: the admin key of this machine's server.",
        show_default=False,
    ),
]


def pairs(given: list[str] | None, option: str) -> dict[str, str]:
    """Parse NAME=VALUE arguments into a mapping. Raises InvalidOption."""
    parsed = {}
    for argument in given or []:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise InvalidOption(f"{option} takes NAME=VALUE, not {argument[:80]!r}", option=option)
        parsed[name] = value
    return parsed


def seconds(text: str | None, option: str) -> int | None:
    """Parse a duration such as 30d, 12h, 45m or 90s. Raises InvalidOption."""
    if text is None:
        return None
    match = _DURATION.match(text)
    if match is None:
        raise InvalidOption(f"{option} takes a duration such as 30d, 12h, 45m or 90s, not {text[:40]!r}", option=option)
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def stdin_bytes(name: str | None) -> bytes | None:
    """Read the file that --stdin names. Raises InvalidOption when it cannot be read or is larger than 16 MiB."""
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


def without_none(**options: Any) -> dict[str, Any]:
    """Return the options whose value is not None."""
    return {name: value for name, value in options.items() if value is not None}
