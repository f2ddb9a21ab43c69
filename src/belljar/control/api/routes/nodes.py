"""/v1/nodes: list the nodes, with an admin key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from belljar.control.api.dependencies import ServicesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope

router = APIRouter(tags=["host"])


@router.get("/v1/nodes", dependencies=[require(Scope.ADMIN)])
async def list_nodes(services: ServicesDep) -> dict[str, Any]:
    """List the nodes with their total and free resources. Requires an admin key."""
    silence = services.node_silence_seconds
    return {"nodes": [node.public(silence) for node in await services.nodes.list()]}
