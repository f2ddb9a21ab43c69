"""`belljar gc`: remove expired data now, as a server does by itself. Safe beside a running server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.printing import print_json, print_message, print_table

if TYPE_CHECKING:
    from belljar.control.maintenance.schedule import ServiceOutcome
    from belljar.settings import Settings

_WAIT_SECONDS = 60.0


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and remove nothing.")] = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Remove expired jobs, scripts, snapshots and caches. Removes leftovers of killed processes too."""
    from belljar.cli.logging import start_logging
    from belljar.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    start_logging(settings, "error")
    outcomes = asyncio.run(_collect(settings, dry_run=dry_run))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if as_json:
        print_json(_report(outcomes, dry_run=dry_run))
    else:
        _print(outcomes, dry_run=dry_run)
    for outcome in failed:
        print_message(f"{outcome.service}: {outcome.error}")
    if failed:
        raise Failed(1)


async def _collect(settings: Settings, *, dry_run: bool) -> list[ServiceOutcome]:
    from belljar.app.maintenance import maintenance_of
    from belljar.cli.printing import ProgressLines
    from belljar.control.audit.entry import Entry
    from belljar.control.audit.local import local_operator
    from belljar.control.blobs.store import open_blobs
    from belljar.control.store.audit import SqlAudit
    from belljar.control.store.opening import open_database

    database = await open_database(settings, migrate=False)
    try:
        maintenance, lines, outcomes = maintenance_of(settings, database, open_blobs(settings)), ProgressLines(), []
        async with maintenance.exclusive(_WAIT_SECONDS):
            async for outcome in maintenance.run_once(dry_run=dry_run):
                outcomes.append(outcome)
                if outcome.result.removed.count:
                    lines.step(f"{outcome.service}: {outcome.result.removed.count}")
        if not dry_run:
            removed = {each.service: each.result.removed.count for each in outcomes if each.result.removed.count}
            entry = Entry(actor=local_operator(), action="maintenance.run", details=removed)
            await SqlAudit(database).append([entry])
        return outcomes
    finally:
        await database.close()


def _report(outcomes: list[ServiceOutcome], *, dry_run: bool) -> dict[str, Any]:
    kinds = [
        {
            "kind": outcome.service,
            "count": outcome.result.removed.count,
            "bytes": outcome.result.removed.size_bytes,
            "findings": list(outcome.result.findings),
            "error": str(outcome.error) if outcome.error is not None else None,
        }
        for outcome in outcomes
    ]
    total = sum(outcome.result.removed.size_bytes for outcome in outcomes)
    return {"dry_run": dry_run, "removed": kinds, "total_bytes": total}


def _print(outcomes: list[ServiceOutcome], *, dry_run: bool) -> None:
    removed = [(each.service, each.result.removed) for each in outcomes if each.result.removed.count]
    print_table(
        ("KIND", "COUNT", "MB"), [(kind, extent.count, f"{extent.size_bytes / 1e6:.1f}") for kind, extent in removed]
    )
    total = sum(extent.size_bytes for _, extent in removed)
    print(f"{total / 1e6:.1f} MB {'would be removed' if dry_run else 'removed'}")
    for outcome in outcomes:
        for finding in outcome.result.findings:
            print_message(f"{outcome.service}: {finding}")
