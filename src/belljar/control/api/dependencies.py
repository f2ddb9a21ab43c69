"""What routes get of a request: the services, the identity and its project. What it may do is in rules.py."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Query
from starlette.requests import HTTPConnection

from belljar.control.api.services import Services
from belljar.control.projects.identity import Identity


# Coroutines, because FastAPI runs plain functions in threads: three for each request.
async def _services(request: HTTPConnection) -> Services:
    return cast(Services, request.app.state.services)


async def _identity(request: HTTPConnection) -> Identity:
    return cast(Identity, request.state.identity)


async def _project(identity: Annotated[Identity, Depends(_identity)]) -> str:
    return identity.project


IdentityDep = Annotated[Identity, Depends(_identity)]
ServicesDep = Annotated[Services, Depends(_services)]
ProjectDep = Annotated[str, Depends(_project)]
Limit = Annotated[int, Query(ge=1, le=500, description="Maximum number of entries.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the previous page.")]
