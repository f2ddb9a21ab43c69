"""/v1/secrets: set, list and remove the project's secrets. No answer, error or log has a value."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from belljar.control.api.audited import audited
from belljar.control.api.bodies import read_secret
from belljar.control.api.dependencies import ProjectDep, ServicesDep
from belljar.control.api.openapi import body_of
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.control.store.secrets import Secret

router = APIRouter(prefix="/v1/secrets", tags=["secrets"])

NAME = Path(description="1 to 64 letters, digits and _ . -", max_length=256)


class SecretBody(BaseModel):
    """The value of a secret: exactly one of both."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    value: str | None = Field(default=None, min_length=1)
    """Text of at most 64 KiB."""
    value_base64: str | None = Field(default=None, min_length=1)
    """Bytes in base64, at most 64 KiB of them."""


@router.put("/{name}", dependencies=[require(Scope.SECRETS_WRITE)], openapi_extra=body_of(SecretBody))
@audited("secret.set")
async def set_secret(request: Request, services: ServicesDep, project: ProjectDep, name: str = NAME) -> dict[str, Any]:
    """Store a new version of a secret. `masked` tells whether what a job prints of it is masked: not below 4 bytes."""
    value = await read_secret(request)
    secret = await services.secrets.set(project, name, value)
    return {**_public(secret), "masked": value.is_masked}


@router.get("", dependencies=[require(Scope.SECRETS_READ)])
async def list_secrets(services: ServicesDep, project: ProjectDep) -> dict[str, Any]:
    """List the project's secrets: names and versions, never values."""
    return {"secrets": [_public(secret) for secret in await services.secrets.list(project)]}


@router.delete("/{name}", dependencies=[require(Scope.SECRETS_WRITE)])
@audited("secret.remove")
async def remove_secret(services: ServicesDep, project: ProjectDep, name: str = NAME) -> dict[str, Any]:
    """Remove a secret. Jobs that name it and have not started yet will fail with the code `secret_missing`."""
    return _public(await services.secrets.remove(project, name))


def _public(secret: Secret) -> dict[str, Any]:
    return secret.model_dump(mode="json")
