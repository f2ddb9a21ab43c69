"""The flows of jobs and sandboxes: what their machines talked to."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from belljar.control.api.dependencies import IdentityDep, ProjectDep, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.model.flows import FlowReport

router = APIRouter(prefix="/v1", tags=["flows"])

Verdict = Annotated[
    Literal["allowed", "refused"] | None, Query(description="Only flows that were let through, or that were not.")
]
MaxFlows = Annotated[int, Query(ge=0, le=2000, description="Maximum number of flows; those with the most bytes.")]


@router.get("/jobs/{job_id}/flows", dependencies=[require(Scope.JOBS_READ)])
async def get_job_flows(
    job_id: str, services: ServicesDep, identity: IdentityDep, verdict: Verdict = None, limit: MaxFlows = 2000
) -> Response:
    """Return what the job's machine talked to in its last attempt: so far, while it runs."""
    job = await services.jobs.get(identity.project, job_id)
    return await _response(await services.flows.get(job.id), verdict, limit)


@router.get("/sandboxes/{sandbox_id}/flows", dependencies=[require(Scope.SANDBOXES)])
async def get_sandbox_flows(
    sandbox_id: str, services: ServicesDep, project: ProjectDep, verdict: Verdict = None, limit: MaxFlows = 2000
) -> Response:
    """Return what the sandbox's machine talked to: so far, while it runs."""
    sandbox = await services.sandboxes.get(project, sandbox_id)
    return await _response(await services.flows.get(sandbox.id), verdict, limit)


async def _response(report: FlowReport, verdict: Verdict, limit: int) -> Response:
    flows = [flow for flow in report.flows if verdict in (None, flow.verdict)]
    shown = report.model_copy(update={"flows": tuple(flows[:limit])})
    return await asyncio.to_thread(lambda: json_response(shown.public()))  # milliseconds for thousands of flows
