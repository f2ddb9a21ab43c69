"""/v1/sandboxes/{id}/ports/{port}/tokens: who may reach a port by its host name, without a key of the API."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_small
from belljar.control.api.dependencies import ProjectDep, ServicesDep
from belljar.control.api.ingress.visitors import PARAMETER
from belljar.control.api.json_response import json_response
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.sandboxes.request import PortTokenRequest

router = APIRouter(prefix="/v1/sandboxes/{sandbox_id}/ports/{port}/tokens", tags=["sandboxes"])

Port = Annotated[int, Path(ge=1, le=65535, description="The TCP port on the sandbox's loopback device.")]
_OPTIONAL_BODY = body_of(PortTokenRequest, required=False)


@router.post("", status_code=201, openapi_extra=_OPTIONAL_BODY, dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.create_port_token")
async def create_port_token(
    request: Request, sandbox_id: str, port: Port, services: ServicesDep, project: ProjectDep
) -> Response:
    """Make a token for the port, which is returned only now.

    Programs send it in the header `Belljar-Port-Token`. A browser opens `url` once: the token becomes a cookie of the
    port's host. `url` is null without the setting `sandbox_domain`.
    """
    wanted = await read_small(request, PortTokenRequest, required=False)
    token, secret = await services.ports.create_token(project, sandbox_id, port, wanted.lifetime_seconds)
    domain = services.sandbox_domain
    url = None if domain is None else domain.url(sandbox_id, port, str(request.url))
    link = None if url is None else f"{url}?{PARAMETER.decode()}={secret}"
    return json_response({**token.model_dump(mode="json"), "token": secret, "url": link}, 201)


@router.get("", dependencies=[require(Scope.SANDBOXES)])
async def list_port_tokens(sandbox_id: str, port: Port, services: ServicesDep, project: ProjectDep) -> Response:
    """List the valid tokens of the port, the newest first, without their secrets."""
    tokens = await services.ports.tokens(project, sandbox_id, port)
    return json_response({"tokens": [each.model_dump(mode="json") for each in tokens]})


@router.delete("/{token_id}", status_code=204, dependencies=[require(Scope.SANDBOXES)])
@audited("sandbox.revoke_port_token")
async def revoke_port_token(
    sandbox_id: str, port: Port, token_id: str, services: ServicesDep, project: ProjectDep
) -> Response:
    """Revoke a token. Connections that it opened end within some seconds."""
    await services.ports.revoke_token(project, sandbox_id, port, token_id)
    return Response(status_code=204)
