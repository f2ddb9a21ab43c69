"""`belljar audit`: show and verify the audit log, of a server or of the data folder on this machine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from belljar.cli import options
from belljar.cli.failure import Failed
from belljar.cli.flags import ServerFlags
from belljar.cli.printing import print_json, print_json_line, print_line, print_message, print_table
from belljar.cli.server import connect
from belljar.cli.signals import run_async
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from belljar.control.audit.entry import Point
    from belljar.control.audit.verify import Verification
    from belljar.settings import Settings

app = typer.Typer(help="Show and verify the audit log.")

#: Rows of an export that are read in one transaction.
_PAGE = 5000
_PERIOD = re.compile(r"([0-9]{1,6})([smhdw])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    server: ServerFlags,
    project: Annotated[str | None, typer.Option(help="Only what concerns this project.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this key or person did: an id or a name.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, for example key.create.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From this time on: 2026-11-27, 2026-11-27T08:00, or 2h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of rows.")] = 50,
    export: Annotated[
        bool, typer.Option("--export", help="Print all rows, oldest first, one JSON object per line.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what was done, newest first: on a server, or in the data folder on this machine."""
    if context.invoked_subcommand is not None:
        return
    which = _Which(project=project, actor=actor, action=action, since=_time(since), until=_time(until))
    if export:
        for record in _all_records(server, which):
            print_json_line(record)
        return
    records = _newest(server, which, limit)
    if as_json:
        print_json(records)
        return
    print_table(
        ("TIME", "ACTOR", "ACTION", "OBJECT", "PROJECT", "FROM", "OUTCOME", "DETAILS"),
        [
            (
                str(record["at"])[:19],
                _actor(record["actor"]),
                record["action"],
                record["object"],
                record["project"],
                record.get("address"),
                record["outcome"],
                _details(record["details"]),
            )
            for record in records
        ],
    )


@app.command()
def verify(
    server: ServerFlags,
    head: Annotated[
        list[str] | None,
        typer.Option("--head", metavar="NUMBER:HASH", help="A head that was noted before. Repeatable."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Verify that no row was changed, removed, inserted or moved. Exit with 1 and say which, if one was."""
    from belljar.control.audit.heads import parse_head

    noted = [parse_head(text) for text in head or []]
    result = _verified(server, noted)
    if as_json:
        print_json(
            {
                "intact": result.is_intact,
                "rows": result.rows,
                "anchor": str(result.anchor),
                "head": str(result.head),
                "findings": result.findings,
                "more_findings": result.more,
            }
        )
    else:
        _print(result)
    if not result.is_intact:
        raise Failed(1)


def _print(result: Verification) -> None:
    for finding in result.findings:
        print_message(finding)
    if result.more:
        print_message(f"{result.more} more findings")
    begin = f", after {result.anchor.seq} that retention removed" if result.anchor.seq else ""
    print_line(f"{result.rows} rows verified{begin}: {'intact' if result.is_intact else 'CHANGED'}")
    print_line(f"head {result.head}")


@dataclass(frozen=True, kw_only=True)
class _Which:
    project: str | None
    actor: str | None
    action: str | None
    since: datetime | None
    until: datetime | None

    def parameters(self) -> dict[str, str]:
        """Return the parameters of a request."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in values.items()
            if value is not None
        }


def _names_a_server(flags: ServerFlags) -> bool:
    """Return whether to ask a server; otherwise the data folder is read, with or without a server on it."""
    return _settings(flags).server is not None


def _settings(flags: ServerFlags) -> Settings:
    from belljar.settings import load_settings

    return load_settings(server=flags.server, data_dir=flags.data_dir)


def _newest(flags: ServerFlags, which: _Which, limit: int) -> list[dict[str, Any]]:
    if not _names_a_server(flags):
        return run_async(_newest_here(_settings(flags), which, limit))
    records: list[dict[str, Any]] = []
    cursor: str | None = None
    with connect(flags) as client:
        while len(records) < limit:
            page = client.audit(**which.parameters(), limit=min(500, limit - len(records)), cursor=cursor)
            records += page["audit"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    return records


async def _newest_here(settings: Settings, which: _Which, limit: int) -> list[dict[str, Any]]:
    from belljar.control.store.audit import AuditFilter, SqlAudit
    from belljar.control.store.opening import open_database

    database = await open_database(settings, migrate=False)
    try:
        return await SqlAudit(database).page(AuditFilter(**dataclasses.asdict(which)), limit=limit)
    finally:
        await database.close()


def _all_records(flags: ServerFlags, which: _Which) -> Iterator[dict[str, Any]]:
    if _names_a_server(flags):
        with connect(flags) as client:
            yield from client.audit_records(**which.parameters())
        return
    after = 0
    while records := run_async(_after_here(_settings(flags), which, after)):
        yield from records
        after = records[-1]["seq"]


async def _after_here(settings: Settings, which: _Which, after: int) -> list[dict[str, Any]]:
    from belljar.control.store.audit import AuditFilter, SqlAudit
    from belljar.control.store.opening import open_database

    database = await open_database(settings, migrate=False)
    try:
        store = SqlAudit(database)
        _, head = await store.ends()
        return await store.after(AuditFilter(**dataclasses.asdict(which)), after, through=head.seq, limit=_PAGE)
    finally:
        await database.close()


def _verified(flags: ServerFlags, noted: list[Point]) -> Verification:
    from belljar.control.audit.entry import Point
    from belljar.control.audit.verify import verify

    if not _names_a_server(flags):
        return run_async(_verified_here(_settings(flags), noted))
    with connect(flags) as client:
        ends = client.audit_head()
        anchor, newest = (
            Point(seq=int(ends[name]["seq"]), hash=bytes.fromhex(ends[name]["hash"])) for name in ("anchor", "head")
        )
        return verify(anchor, client.audit_records(), [*noted, newest])


async def _verified_here(settings: Settings, noted: list[Point]) -> Verification:
    from belljar.control.audit.heads import Heads
    from belljar.control.audit.verify import verify
    from belljar.control.store.audit import SqlAudit
    from belljar.control.store.opening import open_database

    # Before the rows, so that a head that is noted meanwhile does not seem to be of a missing row.
    heads = [*Heads(settings.paths.audit_heads).read(), *noted]
    database = await open_database(settings, migrate=False)
    try:
        return await SqlAudit(database).checked(lambda anchor, records: verify(anchor, records, heads))
    finally:
        await database.close()


def _time(text: str | None) -> datetime | None:
    """Return the time that a flag names. Raises InvalidOption."""
    if text is None:
        return None
    if period := _PERIOD.match(text):
        return datetime.now(UTC) - timedelta(seconds=int(period[1]) * _SECONDS[period[2]])
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidOption(
            f"{text[:80]!r} is no time; use 2026-11-27, 2026-11-27T08:00, or a period before now such as 2h or 7d"
        ) from None


def _actor(actor: Any) -> str:
    if not isinstance(actor, dict):
        return str(actor)
    return str(actor.get("name") or actor.get("id") or actor.get("kind"))


def _details(details: Any) -> str:
    if not isinstance(details, dict):
        return str(details)
    return " ".join(f"{name}={value}" for name, value in details.items())
