"""Pages: the nodes, for operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from belljar.control.api.routes.dashboard.pages import PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.store.nodes import Node

router = APIRouter(include_in_schema=False)


@router.get("/nodes", dependencies=[require(Scope.ADMIN)])
async def show_nodes(page: PagesDep) -> Response:
    """Show the nodes with their capacity and last heartbeat."""
    silence = page.services.node_silence_seconds
    nodes = [_view(each, silence) for each in await page.services.nodes.list()]
    alive = [each for each in nodes if each["alive"]]
    return await page.show(
        "nodes.html",
        nodes=nodes,
        silence=f"{silence:g}",
        largest_mb=max((each["largest_memory_mb"] for each in alive), default=None),
    )


def _view(node: Node, silence_seconds: float) -> dict[str, Any]:
    return {
        **node.public(silence_seconds),
        "heartbeat_at": node.heartbeat_at,
        # A node that reports more free than it has in all is not shown as less than empty.
        "vcpus_used": max(0, node.vcpus - node.vcpus_free),
        "memory_used_mb": max(0, node.memory_mb - node.memory_free_mb),
        "state": None,
    }
