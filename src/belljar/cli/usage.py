"""`belljar usage`: what the project may use and has used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_line, print_table
from belljar.cli.server import connect


def usage(
    server: ServerFlags,
    project: Annotated[
        str | None, typer.Option(help="Project, with an operator's key. Default: the key's own.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=400, help="Number of days to show, today included.")] = 7,
    as_json: options.Json = False,
) -> None:
    """Show the quotas of a project and what it has used, by day."""
    with connect(server, project=project) as client:
        shown = client.usage(days=days)
    if as_json:
        print_json(shown)
        return
    print_line(f"project {shown['project']}, {shown['at'][:16].replace('T', ' ')} UTC")
    print_table(("QUOTA", "USED", "LIMIT", "LEFT"), [_quota(each) for each in shown["quotas"]])
    print_line("")
    print_table(
        ("DAY", "JOBS", "VCPU SECONDS", "MEMORY MB SECONDS"),
        [
            (day["date"], day["jobs"], _number(day["vcpu_seconds"]), _number(day["memory_mb_seconds"]))
            for day in shown["days"]
        ],
    )


def _quota(quota: dict[str, Any]) -> tuple[object, ...]:
    limit, left = quota["limit"], quota["left"]
    return (
        quota["quota"],
        _number(quota["used"]),
        "unlimited" if limit is None else limit,
        "" if left is None else _number(left),
    )


def _number(value: float) -> str:
    """Return a number without needless decimals."""
    return f"{value:.1f}".removesuffix(".0")
