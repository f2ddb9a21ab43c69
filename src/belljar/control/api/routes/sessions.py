"""/v1/session and /v1/sessions: who the caller is, and the sessions of browsers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.rules import anyone

router = APIRouter(prefix="/v1", tags=["sessions"])


@router.get("/session", dependencies=[anyone()])
async def get_session(identity: IdentityDep) -> dict[str, Any]:
    """Return who you are, and what you may do in the project in which the request acts.

    `roles` has a person's projects; the header Belljar-Project chooses one. `form_token` belongs into the forms of this
    session.
    """
    session = identity.session
    return {
        "kind": identity.kind.value,
        "id": identity.id,
        "name": identity.name,
        "project": identity.project,
        "operator": identity.is_operator,
        "scopes": sorted(scope.value for scope in identity.scopes),
        "roles": {project: role.value for project, role in sorted(identity.roles.items())},
        "session": None
        if session is None
        else {"id": session.id, "expires_at": session.expires_at, "form_token": session.form_token},
    }


@router.get("/sessions", dependencies=[anyone()])
async def list_sessions(services: ServicesDep, identity: IdentityDep) -> dict[str, Any]:
    """List your own sessions that have not ended, the newest first: those of a person, or those of the key."""
    return {"sessions": [session.public() for session in await services.sessions.list(identity)]}


@router.delete("/sessions/{session_id}", status_code=204, dependencies=[anyone()])
@audited("session.revoke")
async def revoke_session(session_id: str, services: ServicesDep, identity: IdentityDep) -> None:
    """End one of your sessions at once, with its open streams. Operators may end any."""
    await services.sessions.revoke(identity, session_id)
