"""People who signed in, and the members of projects."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select

from belljar.control.projects.people import Member, Person
from belljar.control.projects.scopes import Role
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.people_schema import members, people, sessions
from belljar.control.store.projects import being_removed, read_project
from belljar.model.errors import NotFound, ProjectConflict
from belljar.model.ids import new_id

MAX_MEMBERS = 1000


class SqlPeople:
    """The people and members in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def sign_in(self, *, issuer: str, subject: str, email: str, name: str, is_operator: bool) -> Person | None:
        """Store who signed in, and give them the projects that invited their address.

        Return None, and store nothing, for somebody whom no project knows and who is no operator: anyone may have an
        account at the provider.
        """
        now = datetime.now(UTC)
        this = (people.c.issuer == issuer, people.c.subject == subject)
        invited = (members.c.email == email, members.c.person_id.is_(None))

        def sign_in(connection: Connection) -> Person | None:
            row = connection.execute(select(people).where(*this)).one_or_none()
            person_id = new_id("per") if row is None else row.id
            claimed = connection.execute(members.update().where(*invited).values(person_id=person_id)).rowcount
            own = select(func.count()).select_from(members).where(members.c.person_id == person_id)
            if not (is_operator or claimed or connection.execute(own).scalar_one()):
                return None
            values = {"email": email, "name": name, "signed_in_at": now}
            if row is None:
                values |= {"id": person_id, "issuer": issuer, "subject": subject, "created_at": now}
                connection.execute(people.insert().values(**values))
            else:
                connection.execute(people.update().where(people.c.id == person_id).values(**values))
            return person_of(connection.execute(select(people).where(people.c.id == person_id)).one())

        return await self._database.writing(sign_in)

    async def members(self, project: str) -> list[Member]:
        """Return the members of a project, by address. Raises NotFound (project)."""

        def read(connection: Connection) -> list[Member]:
            read_project(connection, project)
            query = _MEMBERS.where(members.c.project == project).order_by(members.c.email).limit(MAX_MEMBERS)
            return [_member(row) for row in connection.execute(query)]

        return await self._database.reading(read)

    async def set_member(
        self, project: str, email: str, role: Role, check: Callable[[Role], None]
    ) -> tuple[Member, list[str]]:
        """Invite a member, or change their role. Return the member, and the ids of the sessions that ended.

        A change of the role ends the sessions, so that nothing goes on with the old one. `check` is called with the
        role of before, in the transaction, and may raise. Raises NotFound (project), ProjectConflict.
        """
        count = select(func.count()).select_from(members).where(members.c.project == project)
        this = (members.c.project == project, members.c.email == email)

        def change(connection: Connection) -> tuple[Member, list[str]]:
            if read_project(connection, project).removed_at is not None:
                raise being_removed(project)
            before = _read(connection, project, email)
            ended: list[str] = []
            if before is not None:
                check(before.role)
                connection.execute(members.update().where(*this).values(role=role.value))
                if before.person_id is not None and before.role is not role:
                    ended = _end_sessions(connection, before.person_id)
            elif connection.execute(count).scalar_one() >= MAX_MEMBERS:
                raise ProjectConflict(f"the project {project!r} has {MAX_MEMBERS} members, the maximum; remove one")
            else:
                values = {"project": project, "email": email, "role": role.value, "created_at": datetime.now(UTC)}
                connection.execute(members.insert().values(**values))
            record_change(connection, "member.set", email, project=project, role=role.value)
            after = _read(connection, project, email)
            assert after is not None
            return after, ended

        return await self._database.writing(change)

    async def remove_member(self, project: str, email: str, check: Callable[[Role], None]) -> tuple[Member, list[str]]:
        """Remove a member, and end their sessions. Return the member, and the ids of the sessions. Raises NotFound."""
        this = (members.c.project == project, members.c.email == email)

        def remove(connection: Connection) -> tuple[Member, list[str]]:
            member = _read(connection, project, email)
            if member is None:
                raise missing_member(project, email)
            check(member.role)
            connection.execute(members.delete().where(*this))
            ended = [] if member.person_id is None else _end_sessions(connection, member.person_id)
            record_change(connection, "member.remove", email, project=project, role=member.role.value)
            return member, ended

        return await self._database.writing(remove)

    async def get(self, person_id: str) -> Person | None:
        """Return a person by their id."""
        query = select(people).where(people.c.id == person_id)
        row = await self._database.reading(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else person_of(row)


_MEMBERS = select(members, people.c.name, people.c.email.label("current_email"), people.c.signed_in_at).join_from(
    members, people, members.c.person_id == people.c.id, isouter=True
)


def missing_member(project: str, email: str) -> NotFound:
    """Return the error for an address that is no member's."""
    return NotFound(f"{email[:80]!r} is no member of {project[:80]!r}; list them with belljar project members ls")


def person_of(row: Row[Any]) -> Person:
    """Return the person of a row of the table `people`."""
    return Person(**row._mapping)


def _end_sessions(connection: Connection, person_id: str) -> list[str]:
    is_live = (sessions.c.person_id == person_id, sessions.c.ended_at.is_(None))
    ids = list(connection.execute(select(sessions.c.id).where(*is_live)).scalars())
    connection.execute(sessions.update().where(*is_live).values(ended_at=datetime.now(UTC)))
    return ids


def _read(connection: Connection, project: str, email: str) -> Member | None:
    query = _MEMBERS.where(members.c.project == project, members.c.email == email)
    row = connection.execute(query).one_or_none()
    return None if row is None else _member(row)


def _member(row: Row[Any]) -> Member:
    return Member(**row._mapping)
