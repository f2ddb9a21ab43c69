"""/v1/projects/{name}/members: the people in a project, and invitations."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.people import MemberChange
from belljar.control.projects.scopes import Scope

router = APIRouter(prefix="/v1/projects/{name}/members", tags=["projects"])


@router.get("", dependencies=[require(Scope.PROJECT_ADMIN)])
async def list_members(name: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """List the members of the project and the invitations, by address; at most 1000."""
    return {"members": [member.public() for member in await services.members.list(identity, name)]}


@router.put("/{email}", openapi_extra=body_of(MemberChange), dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("member.set")
async def set_member(
    name: str, email: str, request: Request, services: ServicesDep, identity: IdentityDep
) -> dict[str, Any]:
    """Invite the owner of an address of email, or change a member's role, which ends the member's sessions.

    Whoever signs in by OpenID Connect with the address, verified by the provider, becomes the member. You cannot give
    or change a role that may do more than you.
    """
    change = await read_small(request, MemberChange)
    return (await services.members.set(identity, name, email, change)).public()


@router.delete("/{email}", dependencies=[require(Scope.PROJECT_ADMIN)])
@audited("member.remove")
async def remove_member(name: str, email: str, services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """Remove a member or an invitation. The member's sessions end at once; keys that they created stay."""
    return (await services.members.remove(identity, name, email)).public()
