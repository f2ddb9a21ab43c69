"""/v1/images: list the images."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.images.catalog import summary

router = APIRouter(tags=["host"])


@router.get("/v1/images", dependencies=[require(Scope.IMAGES_READ)])
async def list_images(services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """List the images: languages and versions, size, the digest of every part.

    With an admin key, also the snapshots that nodes have of them.
    """
    nodes = await services.nodes.list() if identity.is_operator else []
    snapshots = [{"node": node.id, **each} for node in nodes for each in node.snapshots]
    return {"images": [summary(image, snapshots) for image in services.images.list()]}
