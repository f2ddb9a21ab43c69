"""Projects and keys for commands: through a server's API, or on the data folder of this machine without a server.

Both end in the same services of the control plane. On the data folder, which only the operator can read, every project
is in reach.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from belljar.cli.server import connect
from belljar.cli.signals import run_async
from belljar.model.errors import InvalidOption

if TYPE_CHECKING:
    from pydantic import BaseModel

    from belljar.cli.flags import AdministrationFlags
    from belljar.control.projects.identity import Identity
    from belljar.control.projects.key_service import KeyService
    from belljar.control.projects.member_service import MemberService
    from belljar.control.projects.project_service import ProjectService
    from belljar.control.quotas.service import QuotaService
    from belljar.control.store.database import Database
    from belljar.control.store.projects import SqlProjects
    from belljar.settings import Settings

_PAGE = 500
M = TypeVar("M", bound="BaseModel")


class Administration(Protocol):
    """The operations on projects and keys, as `belljar.client.Client` has them."""

    def create_key(self, **options: Any) -> dict[str, Any]: ...

    def keys(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]: ...

    def revoke_key(self, key_id: str) -> dict[str, Any]: ...

    def rotate_key(self, key_id: str, overlap_seconds: int) -> dict[str, Any]: ...

    def create_project(self, name: str) -> dict[str, Any]: ...

    def projects(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]: ...

    def change_project(self, name: str, **changes: Any) -> dict[str, Any]: ...

    def remove_project(self, name: str) -> dict[str, Any]: ...

    def members(self, project: str) -> dict[str, Any]: ...

    def set_member(self, project: str, email: str, role: str) -> dict[str, Any]: ...

    def remove_member(self, project: str, email: str) -> dict[str, Any]: ...

    def quotas(self, name: str) -> dict[str, Any]: ...

    def change_quotas(self, name: str, **changes: Any) -> dict[str, Any]: ...


@contextlib.contextmanager
def administration(flags: AdministrationFlags, *, project: str | None = None) -> Iterator[Administration]:
    """Open the server that is named, else the data folder. `project`: the one that listings are limited to."""
    if names_server(flags):
        with connect(flags, project=project) as client:
            yield client
    else:
        yield DataFolder(flags.data_dir, project)


def names_server(flags: AdministrationFlags) -> bool:
    """Return whether the command is to work through a server, by its flags or the settings."""
    from belljar.settings import load_settings

    settings = load_settings(server=flags.server, api_key=flags.api_key, data_dir=flags.data_dir)
    is_configured = flags.data_dir is None and (settings.server or settings.api_key)
    return bool(flags.server or flags.api_key or is_configured)


def pages(read: Callable[..., dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of every page."""
    cursor = None
    while True:
        page = read(limit=_PAGE, cursor=cursor)
        yield from page[name]
        cursor = page["next_cursor"]
        if cursor is None:
            return


class DataFolder:
    """The operations on a data folder. A server that runs on it knows of each change when the operation returns."""

    def __init__(self, data_dir: Path | None, project: str | None) -> None:
        self._data_dir = data_dir
        self._project = project

    def create_key(self, **options: Any) -> dict[str, Any]:
        from belljar.control.projects.key_request import NewKey

        new = _valid(NewKey, options)

        async def create(by: Identity, keys: KeyService, _: ProjectService) -> dict[str, Any]:
            key, secret = await keys.create(by, new)
            return {**key.public(), "secret": secret}

        return self._with_services(create)

    def keys(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        async def page(by: Identity, keys: KeyService, _: ProjectService) -> dict[str, Any]:
            found, next_cursor = await keys.page(by, limit=limit or _PAGE, after=cursor or "")
            return {"keys": [key.public() for key in found], "next_cursor": next_cursor}

        return self._with_services(page)

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        async def revoke(by: Identity, keys: KeyService, _: ProjectService) -> dict[str, Any]:
            return (await keys.revoke(by, key_id)).public()

        return self._with_services(revoke, known_to_server=True)

    def rotate_key(self, key_id: str, overlap_seconds: int) -> dict[str, Any]:
        from belljar.control.projects.key_request import Rotation

        rotation = _valid(Rotation, {"overlap_seconds": overlap_seconds})

        async def rotate(by: Identity, keys: KeyService, _: ProjectService) -> dict[str, Any]:
            key, secret = await keys.rotate(by, key_id, rotation)
            return {**key.public(), "secret": secret}

        return self._with_services(rotate, known_to_server=True)

    def create_project(self, name: str) -> dict[str, Any]:
        from belljar.control.projects.project_request import NewProject

        new = _valid(NewProject, {"name": name})

        async def create(by: Identity, _: KeyService, projects: ProjectService) -> dict[str, Any]:
            return (await projects.create(by, new)).public()

        return self._with_services(create)

    def projects(self, *, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        async def page(by: Identity, _: KeyService, projects: ProjectService) -> dict[str, Any]:
            found, next_cursor = await projects.page(by, limit=limit or _PAGE, after=cursor or "")
            return {"projects": [project.public() for project in found], "next_cursor": next_cursor}

        return self._with_services(page)

    def change_project(self, name: str, **changes: Any) -> dict[str, Any]:
        from belljar.control.projects.project_request import ProjectChange

        wanted = _valid(ProjectChange, changes)

        async def change(by: Identity, _: KeyService, projects: ProjectService) -> dict[str, Any]:
            return (await projects.change(by, name, wanted)).public()

        return self._with_services(change, known_to_server=True)

    def remove_project(self, name: str) -> dict[str, Any]:
        async def remove(by: Identity, _: KeyService, projects: ProjectService) -> dict[str, Any]:
            return (await projects.remove(by, name)).public()

        return self._with_services(remove, known_to_server=True)

    def members(self, project: str) -> dict[str, Any]:
        async def read(by: Identity, members: MemberService) -> dict[str, Any]:
            return {"members": [member.public() for member in await members.list(by, project)]}

        return self._with_members(read)

    def set_member(self, project: str, email: str, role: str) -> dict[str, Any]:
        from belljar.control.projects.people import MemberChange

        wanted = _valid(MemberChange, {"role": role})

        async def change(by: Identity, members: MemberService) -> dict[str, Any]:
            return (await members.set(by, project, email, wanted)).public()

        return self._with_members(change, known_to_server=True)

    def remove_member(self, project: str, email: str) -> dict[str, Any]:
        async def remove(by: Identity, members: MemberService) -> dict[str, Any]:
            return (await members.remove(by, project, email)).public()

        return self._with_members(remove, known_to_server=True)

    def quotas(self, name: str) -> dict[str, Any]:
        async def read(projects: SqlProjects, quotas: QuotaService) -> dict[str, Any]:
            await projects.get(name)
            return quotas.public(name, await quotas.quotas(name))

        return self._with_quotas(read)

    def change_quotas(self, name: str, **changes: Any) -> dict[str, Any]:
        from belljar.model.quotas import ProjectQuotas

        wanted = _valid(ProjectQuotas, changes)

        async def change(_: SqlProjects, quotas: QuotaService) -> dict[str, Any]:
            return quotas.public(name, await quotas.change(name, wanted))

        return self._with_quotas(change, known_to_server=True)

    def _with_services(
        self,
        work: Callable[[Identity, KeyService, ProjectService], Awaitable[dict[str, Any]]],
        *,
        known_to_server: bool = False,
    ) -> dict[str, Any]:
        from belljar.control.jobs.changes import Changes
        from belljar.control.projects.identity import host_operator
        from belljar.control.projects.key_service import KeyService
        from belljar.control.projects.project_service import ProjectService
        from belljar.control.store.keys import SqlKeys
        from belljar.control.store.projects import SqlProjects

        async def with_services(database: Database, _: Settings) -> dict[str, Any]:
            changes, store, projects = Changes(), SqlKeys(database), SqlProjects(database)
            by = host_operator() if self._project is None else host_operator().acting_in(self._project)
            return await work(by, KeyService(store, changes), ProjectService(projects, store, changes))

        return self._with_database(with_services, known_to_server=known_to_server)

    def _with_quotas(
        self,
        work: Callable[[SqlProjects, QuotaService], Awaitable[dict[str, Any]]],
        *,
        known_to_server: bool = False,
    ) -> dict[str, Any]:
        from belljar.control.quotas.service import QuotaService
        from belljar.control.store.projects import SqlProjects
        from belljar.control.store.quotas import SqlQuotas

        async def with_quotas(database: Database, settings: Settings) -> dict[str, Any]:
            return await work(SqlProjects(database), QuotaService(SqlQuotas(database), settings))

        return self._with_database(with_quotas, known_to_server=known_to_server)

    def _with_members(
        self,
        work: Callable[[Identity, MemberService], Awaitable[dict[str, Any]]],
        *,
        known_to_server: bool = False,
    ) -> dict[str, Any]:
        from belljar.control.jobs.changes import Changes
        from belljar.control.projects.identity import host_operator
        from belljar.control.projects.member_service import MemberService
        from belljar.control.store.keys import SqlKeys
        from belljar.control.store.people import SqlPeople
        from belljar.control.store.sessions import SqlSessions

        async def with_members(database: Database, _: Settings) -> dict[str, Any]:
            sessions = SqlSessions(database, SqlKeys(database))
            return await work(host_operator(), MemberService(SqlPeople(database), sessions, Changes()))

        return self._with_database(with_members, known_to_server=known_to_server)

    def _with_database(
        self, work: Callable[[Database, Settings], Awaitable[dict[str, Any]]], *, known_to_server: bool
    ) -> dict[str, Any]:
        """Do the work on the opened database; with `known_to_server`, wait until no server's cache is of before."""
        from belljar.cli.logging import start_logging
        from belljar.control.audit.local import local_operator
        from belljar.control.audit.operation import OwnOperation, carrying_out
        from belljar.control.store.keys import CACHE_SECONDS
        from belljar.control.store.opening import open_database
        from belljar.settings import load_settings

        settings = load_settings(data_dir=self._data_dir)
        start_logging(settings, "error")

        async def opened() -> dict[str, Any]:
            database = await open_database(settings, migrate=False)
            try:
                with carrying_out(OwnOperation(local_operator())):
                    return await work(database, settings)
            finally:
                await database.close()

        done = run_async(opened())
        if known_to_server:
            time.sleep(CACHE_SECONDS)
        return done


def _valid(model: type[M], values: dict[str, Any]) -> M:
    """Return the values as the API checks them. Raises InvalidOption."""
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "value"
        raise InvalidOption(f"{name}: {first['msg']}, not {str(first['input'])[:64]!r}", option=name) from None
