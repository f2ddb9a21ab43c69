"""/: what runs, what waits and why, what ended lately; for operators also the nodes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import RedirectResponse, Response

from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.rules import anyone
from belljar.control.api.services import Services
from belljar.control.projects.scopes import Scope
from belljar.control.store.job_ends import SPANS, percentiles
from belljar.control.store.nodes import Node

router = APIRouter(include_in_schema=False)

#: Where the address names the spans.
_NAMES = {"1h": SPANS[0], "24h": SPANS[1], "7d": SPANS[2]}


@router.get("/", dependencies=[anyone()])
async def show_overview(
    pages: PagesDep,
    services: ServicesDep,
    identity: IdentityDep,
    span: Annotated[str, Query(max_length=10)] = "1h",
) -> Response:
    """Show the overview; who may not read jobs gets to the account."""
    if not identity.may(Scope.JOBS_READ):
        return RedirectResponse("/account", 303)
    chosen = span if span in _NAMES else "1h"
    overview = await services.overview.read(identity.project, _NAMES[chosen])
    values: dict[str, Any] = {
        "overview": overview,
        "span": chosen,
        "spans": {name: each.name for name, each in _NAMES.items()},
        "latencies": [percentiles([step], (0.5, 0.95)) for step in overview.steps],
        "sandboxes": await _sandboxes(services, identity.project) if identity.may(Scope.SANDBOXES) else None,
        "nodes": await services.nodes.list() if identity.is_operator else None,
        "is_alive": lambda node: _is_alive(node, services.node_silence_seconds),
    }
    return pages.part("overview_part.html", **values) if pages.is_part else await pages.show("overview.html", **values)


async def _sandboxes(services: Services, project: str) -> int:
    return (await services.sandbox_queue.store.use(project)).sandboxes


def _is_alive(node: Node, silent_after_seconds: float) -> bool:
    return datetime.now(UTC) - node.heartbeat_at < timedelta(seconds=silent_after_seconds)
