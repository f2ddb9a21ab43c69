"""/metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from belljar.control.api.dependencies import ServicesDep
from belljar.control.api.rules import require
from belljar.control.metrics import gauges
from belljar.control.projects.scopes import Scope
from belljar.control.store.maintenance import SqlMaintenance
from belljar.system.exposition import CONTENT_TYPE, write_metrics

router = APIRouter(tags=["host"])


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[require(Scope.ADMIN)])
async def metrics(services: ServicesDep) -> Response:
    """Return metrics in the format of Prometheus, over all projects. Requires an admin key."""
    found = [
        *gauges.jobs(await services.job_store.counts(), await services.job_store.oldest_queued_seconds()),
        *gauges.sandboxes(await services.sandbox_queue.store.counts()),
        *gauges.nodes(await services.nodes.list(), services.node_silence_seconds),
        *gauges.quotas(*await services.quotas.projects_at_limit()),
        *gauges.disk(services.disk),
        *gauges.maintenance(await SqlMaintenance(services.database).all()),
    ]
    return Response(write_metrics(found), media_type=CONTENT_TYPE)
