"""/v1/keys: create, list and revoke keys, with an admin key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import AdminDep, ServicesDep
from belljar.control.api.openapi import body_of

router = APIRouter(prefix="/v1/keys", tags=["keys"])

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class NewKey(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64, pattern=NAME)
    project: str = Field("default", min_length=1, max_length=64, pattern=NAME)
    admin: bool = False


@router.post("", status_code=201, openapi_extra=body_of(NewKey))
@audited("key.create")
async def create_key(request: Request, services: ServicesDep, _admin: AdminDep) -> dict[str, Any]:
    """Create a key. This response is the only one with its `secret`."""
    new = await read_small(request, NewKey)
    key, secret = await services.keys.create(new.project, new.name, admin=new.admin)
    return {**key.model_dump(mode="json"), "secret": secret}


@router.get("")
async def list_keys(services: ServicesDep, _admin: AdminDep) -> dict[str, Any]:
    """List all keys, without their secrets."""
    return {"keys": [key.model_dump(mode="json") for key in await services.keys.list()]}


@router.delete("/{key_id}")
@audited("key.revoke")
async def revoke_key(key_id: str, services: ServicesDep, _admin: AdminDep) -> dict[str, Any]:
    """Revoke a key at once; its open streams end."""
    key = await services.keys.revoke(key_id)
    services.changes.notify_revoked(key.id)
    return key.model_dump(mode="json")
