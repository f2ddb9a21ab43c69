"""/v1/keys: create, list, rotate and revoke the keys of a project, or of all with an operator's key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import Cursor, IdentityDep, Limit, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.key_request import NewKey, Rotation
from belljar.control.projects.scopes import Scope

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post("", status_code=201, openapi_extra=body_of(NewKey), dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("key.create")
async def create_key(request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Create a key with at most the scopes of your own. This response is the only one with its `secret`."""
    key, secret = await services.key_service.create(identity, await read_small(request, NewKey))
    return {**key.public(), "secret": secret}


@router.get("", dependencies=[require(Scope.PROJECT_ADMIN)])
async def list_keys(
    services: ServicesDep, identity: IdentityDep, limit: Limit = 500, cursor: Cursor = None
) -> dict[str, Any]:
    """List the keys of your project, of all projects with an operator's key; without their secrets."""
    page, next_cursor = await services.key_service.page(identity, limit=limit, after=cursor or "")
    return {"keys": [key.public() for key in page], "next_cursor": next_cursor}


@router.delete("/{key_id}", dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("key.revoke")
async def revoke_key(key_id: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Revoke a key at once; its open streams end."""
    return (await services.key_service.revoke(identity, key_id)).public()


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    openapi_extra=body_of(Rotation, required=False),
    dependencies=[require(Scope.PROJECT_ADMIN)],
)
@audited("key.rotate")
async def rotate_key(key_id: str, request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Create a key that replaces this one, which expires after the overlap. Only this response has the `secret`."""
    rotation = await read_small(request, Rotation, required=False)
    key, secret = await services.key_service.rotate(identity, key_id, rotation)
    return {**key.public(), "secret": secret}
