"""/v1/audit: read and export the audit log, and the ends of its chain."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.rules import require
from belljar.control.api.services import Services
from belljar.control.api.streams import Stream
from belljar.control.audit.entry import HASHES
from belljar.control.projects.identity import Identity
from belljar.control.projects.scopes import Scope
from belljar.control.store.audit import AuditFilter, SqlAudit
from belljar.model.errors import InvalidRequest

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Name = Annotated[str | None, Query(max_length=200)]
#: A project's record has the time of the server, a row the database's.
_SKEW = timedelta(seconds=1)
#: Fields that only the operator sees: addresses of other people, and hashes, which cover them.
_OPERATORS = (*HASHES, "address")


@router.get("", dependencies=[require(Scope.AUDIT_READ)])
async def list_audit(
    services: ServicesDep,
    identity: IdentityDep,
    project: Name = None,
    actor: Annotated[str | None, Query(max_length=200, description="Id or name of a key or person.")] = None,
    action: Annotated[str | None, Query(max_length=200, description="For example `key.create`.")] = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    format: Annotated[
        Literal["json", "jsonl"], Query(description="jsonl: all rows, oldest first, one JSON object per line.")
    ] = "json",
) -> Response:
    """List what was done, newest first: the rows of your project; all rows with an operator's key."""
    requested: dict[str, Any] = {"project": project, "actor": actor, "action": action, "since": since, "until": until}
    if format == "jsonl":
        which = await _filter(services, identity, **requested)
        await services.auditor.flush()
        store, after = services.auditor.store, _number(cursor)
        return Stream(_lines(store, which, after or 0, identity), media_type="application/jsonl")
    page, next_cursor = await audit_page(services, identity, **requested, limit=limit, cursor=cursor)
    return json_response({"audit": page, "next_cursor": next_cursor})


async def audit_page(
    services: Services, identity: Identity, *, limit: int, cursor: str | None, **requested: Any
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the newest rows that the caller may read and asks for, and the cursor of the next ones."""
    which, before = await _filter(services, identity, **requested), _number(cursor)
    await services.auditor.flush()
    records = await services.auditor.store.page(which, limit=limit + 1, before=before)
    page = [_public(record, identity) for record in records[:limit]]
    return page, str(page[-1]["seq"]) if len(records) > limit else None


async def _filter(
    services: Services,
    identity: Identity,
    *,
    project: str | None,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
) -> AuditFilter:
    return AuditFilter(
        project=(project or identity.only_project) if identity.is_operator else identity.project,
        actor=actor,
        action=action,
        since=_aware(since) if identity.is_operator else await _since(services, identity, _aware(since)),
        until=_aware(until),
    )


@router.get("/head", dependencies=[require(Scope.ADMIN)])
async def get_audit_head(services: ServicesDep) -> dict[str, Any]:
    """Return both ends of the chain: `anchor`, after which the rows begin, and `head`, the newest row."""
    await services.auditor.flush()
    anchor, head = await services.auditor.store.ends()
    return {name: {"seq": end.seq, "hash": end.hash.hex()} for name, end in (("anchor", anchor), ("head", head))}


async def _lines(
    store: SqlAudit, which: AuditFilter, after: int, identity: Identity
) -> AsyncGenerator[bytes | str, None]:
    _, head = await store.ends()
    while records := await store.after(which, after, through=head.seq):
        after = records[-1]["seq"]
        yield "".join(f"{_compact(_public(record, identity))}\n" for record in records)


def _compact(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _public(record: dict[str, Any], identity: Identity) -> dict[str, Any]:
    """Return the record as its reader may see it."""
    if identity.is_operator:
        return record
    return {name: value for name, value in record.items() if name not in _OPERATORS}


async def _since(services: Services, identity: Identity, since: datetime | None) -> datetime:
    """Return from when on a project may read: a removed project of the same name belonged to others."""
    created_at = (await services.projects.get(identity.project)).created_at - _SKEW
    return created_at if since is None else max(since, created_at)


def _aware(at: datetime | None) -> datetime | None:
    return at if at is None or at.tzinfo is not None else at.replace(tzinfo=UTC)


def _number(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InvalidRequest("invalid cursor; use next_cursor from the previous page")
    return int(cursor)
