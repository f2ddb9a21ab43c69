"""/healthz and /readyz, for load balancers and supervisors."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from belljar import __version__
from belljar.control.api.dependencies import ServicesDep
from belljar.control.api.problems import problem
from belljar.control.api.rules import public
from belljar.model.errors import DiskFull, HostError

router = APIRouter(tags=["host"])


@router.get("/healthz", dependencies=[public()])
async def healthz() -> dict[str, str]:
    """Return 200 while the process responds."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", response_model=dict[str, str], dependencies=[public()])
async def readyz(services: ServicesDep) -> dict[str, str] | Response:
    """Return 200 when the database responds, a worker is alive and there is disk space for new work, else 503."""
    if not await services.nodes.limits(services.node_silence_seconds):
        raise HostError("no worker has sent a heartbeat lately; start one, or check its log")
    low = services.disk.low()
    if low is not None:
        detail = f"not enough disk space for new work: {low.sentence()}"
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, DiskFull.code, detail)
    return {"status": "ok"}
