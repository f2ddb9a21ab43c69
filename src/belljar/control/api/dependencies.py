"""What routes get of a request: the services, the key and its project."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Query, Request

from belljar.control.api.services import Services
from belljar.control.store.keys import Key
from belljar.model.errors import Forbidden


# Coroutines, because FastAPI runs plain functions in threads: three for each request.
async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _key(request: Request) -> Key:
    return cast(Key, request.state.key)


async def _project(key: Annotated[Key, Depends(_key)]) -> str:
    return key.project


async def _admin(key: Annotated[Key, Depends(_key)]) -> Key:
    if not key.admin:
        raise Forbidden("this requires an admin key")
    return key


KeyDep = Annotated[Key, Depends(_key)]
ServicesDep = Annotated[Services, Depends(_services)]
ProjectDep = Annotated[str, Depends(_project)]
AdminDep = Annotated[Key, Depends(_admin)]
Limit = Annotated[int, Query(ge=1, le=500, description="Maximum number of entries.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the previous page.")]
