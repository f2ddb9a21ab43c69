"""What routes ask of a request: the services, and who is calling."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Query, Request

from belljar.control.api.services import Services
from belljar.control.store.keys import Key
from belljar.model.errors import Forbidden


# Coroutines: FastAPI sends plain functions to a thread each, three for every request.
async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _key(request: Request) -> Key:
    return cast(Key, request.state.key)


async def _project(key: Annotated[Key, Depends(_key)]) -> str:
    return key.project


async def _admin(key: Annotated[Key, Depends(_key)]) -> Key:
    if not key.admin:
        raise Forbidden("only an admin key may do this")
    return key


Caller = Annotated[Key, Depends(_key)]
ServicesDep = Annotated[Services, Depends(_services)]
Project = Annotated[str, Depends(_project)]
Admin = Annotated[Key, Depends(_admin)]
Limit = Annotated[int, Query(ge=1, le=500, description="Most entries of a page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")]
