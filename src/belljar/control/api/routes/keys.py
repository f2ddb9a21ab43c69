"""/v1/keys: create, list, rotate and revoke the keys of a project, or of all with an operator's key."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.project import MAX_NAME_CHARACTERS, NAME
from belljar.control.projects.scopes import Role, Scope

router = APIRouter(prefix="/v1/keys", tags=["keys"])

_DAY = 24 * 3600
MAX_LIFETIME_SECONDS = 3650 * _DAY
MAX_OVERLAP_SECONDS = 30 * _DAY


class NewKey(BaseModel):
    """A key to create. Without `role`, `scopes` and `admin`, it has the role `member`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NAME)
    """What the key is for."""
    project: str | None = Field(None, min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NAME)
    """Its project; default: that of the request. An operator creates a new project by naming it."""
    role: Role | None = None
    """A named set of scopes."""
    scopes: frozenset[Scope] = frozenset()
    """Scopes beside those of the role."""
    admin: bool = False
    """Whether it is an operator's key, like the scope `admin`."""
    expires_in_seconds: int | None = Field(None, ge=1, le=MAX_LIFETIME_SECONDS)
    """Its lifetime; default: until it is revoked."""

    def wanted(self) -> tuple[Role | None, frozenset[Scope]]:
        """Return the role and the further scopes."""
        scopes = self.scopes | ({Scope.ADMIN} if self.admin else frozenset())
        return (self.role if self.role is not None or scopes else Role.MEMBER), scopes


class Rotation(BaseModel):
    """How to rotate a key."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    overlap_seconds: int = Field(3600, ge=0, le=MAX_OVERLAP_SECONDS)
    """For how long the old secret stays valid."""


@router.post("", status_code=201, openapi_extra=body_of(NewKey), dependencies=[require(Scope.PROJECT_ADMIN)])
async def create_key(request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Create a key with at most the scopes of your own. This response is the only one with its `secret`."""
    new = await read_small(request, NewKey)
    role, scopes = new.wanted()
    key, secret = await services.key_service.create(
        identity,
        new.name,
        project=new.project,
        role=role,
        scopes=scopes,
        expires_in_seconds=new.expires_in_seconds,
    )
    return {**key.public(), "secret": secret}


@router.get("", dependencies=[require(Scope.PROJECT_ADMIN)])
async def list_keys(services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """List the keys of your project, of all projects with an operator's key; without their secrets."""
    return {"keys": [key.public() for key in await services.key_service.list(identity)]}


@router.delete("/{key_id}", dependencies=[require(Scope.PROJECT_ADMIN)])
async def revoke_key(key_id: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Revoke a key at once; its open streams end."""
    return (await services.key_service.revoke(identity, key_id)).public()


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    openapi_extra=body_of(Rotation, required=False),
    dependencies=[require(Scope.PROJECT_ADMIN)],
)
async def rotate_key(key_id: str, request: Request, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Create a key that replaces this one, which expires after the overlap. Only this response has the `secret`."""
    rotation = await read_small(request, Rotation, required=False)
    key, secret = await services.key_service.rotate(identity, key_id, rotation.overlap_seconds)
    return {**key.public(), "secret": secret}
