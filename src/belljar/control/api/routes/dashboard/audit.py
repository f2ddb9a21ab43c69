"""Pages: the audit log, and whether its newest rows are intact."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from belljar.control.api.audited import action_of
from belljar.control.api.dependencies import Cursor
from belljar.control.api.routes.audit import audit_page
from belljar.control.api.routes.dashboard.answers import next_page
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.audit.verify import Verification, verify_newest
from belljar.control.projects.scopes import Scope
from belljar.control.store.audit import AuditFilter
from belljar.control.web.form_state import InvalidForm
from belljar.model.errors import BelljarError

router = APIRouter(include_in_schema=False)

_PATH = "/audit"
_PAGE = 50
#: Rows whose chain a page verifies: some 10 ms.
_VERIFIED = 500

Text = Annotated[str, Query(max_length=200)]


@router.get(_PATH, dependencies=[require(Scope.AUDIT_READ)])
async def show_audit(
    page: PagesDep,
    project: Text = "",
    actor: Text = "",
    action: Text = "",
    since: Text = "",
    until: Text = "",
    cursor: Cursor = None,
) -> Response:
    """Show the newest rows that match; with an operator's key of all projects."""
    given = {"project": project, "actor": actor, "action": action, "since": since, "until": until}
    given = {name: text.strip() for name, text in given.items()}
    problem: str | None = None
    records: list[dict[str, Any]] = []
    after: str | None = None
    try:
        records, after = await audit_page(
            page.services,
            page.identity,
            project=given["project"] or None,
            actor=given["actor"] or None,
            action=given["action"] or None,
            since=_time(given["since"], "From"),
            until=_time(given["until"], "To"),
            limit=_PAGE,
            cursor=cursor,
        )
    except BelljarError as error:
        if error.status >= 500:
            raise
        problem = page.message(error)
    return await page.show(
        "audit.html",
        status=422 if problem else 200,
        records=records,
        next=next_page(_PATH, given, after),
        filter=given,
        is_filtered=any(given.values()),
        problem=problem,
        actions=_actions(page),
        chain=await _chain(page) if page.identity.is_operator else None,
    )


async def _chain(page: Pages) -> Verification:
    records = await page.services.auditor.store.page(AuditFilter(), limit=_VERIFIED)
    return await asyncio.to_thread(verify_newest, records[::-1])


def _actions(page: Pages) -> list[str]:
    """Return the names of the actions of this server's routes, for the field to suggest."""
    found: set[str] = set()
    for route in page.request.app.routes:
        endpoint: Any = getattr(route, "endpoint", None)
        if endpoint is not None and (name := action_of(endpoint)) is not None:
            found.add(name)
    return sorted(found)


def _time(text: str, label: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidForm({"since": f"{label}: {text[:40]!r} is no time; enter one such as 2026-11-27T08:00"}) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
