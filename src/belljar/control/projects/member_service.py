"""Invites people into projects, changes their roles and removes them, within what the caller may do itself."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.control.projects.people import Member, MemberChange, email_of
from belljar.control.projects.scopes import Role, granted
from belljar.control.store.people import SqlPeople
from belljar.control.store.projects import missing_project
from belljar.control.store.sessions import SqlSessions
from belljar.model.errors import Forbidden

log = structlog.get_logger()


class MemberService:
    """The operations of the API and the command line on members. Routes have checked the scope."""

    def __init__(self, people: SqlPeople, sessions: SqlSessions, changes: Changes) -> None:
        self._people = people
        self._sessions = sessions
        self._changes = changes

    async def list(self, by: Identity, project: str) -> list[Member]:
        """Return the members of a project, by address. Raises NotFound, also for one that the caller may not see."""
        _check_sees(by, project)
        return await self._people.members(project)

    async def set(self, by: Identity, project: str, email: str, change: MemberChange) -> Member:
        """Invite the owner of an address, or change their role, which ends their sessions.

        Raises NotFound, InvalidOption, ProjectConflict; Forbidden for a role beyond the caller's scopes, before or
        after the change.
        """
        _check_sees(by, project)
        _check_role(by, change.role)
        email = email_of(email)
        member, ended = await self._people.set_member(project, email, change.role, partial(_check_role, by))
        self._notify(ended)
        log.info("member_set", project=project, role=member.role.value, person=member.person_id, by=by.id)
        return member

    async def remove(self, by: Identity, project: str, email: str) -> Member:
        """Remove a member or an invitation, and end the member's sessions. Raises NotFound, Forbidden."""
        _check_sees(by, project)
        member, ended = await self._people.remove_member(project, email_of(email), partial(_check_role, by))
        self._notify(ended)
        log.info("member_removed", project=project, person=member.person_id, by=by.id)
        return member

    def _notify(self, ended: Iterable[str]) -> None:
        self._sessions.forget()
        for session_id in ended:
            self._changes.notify_revoked(session_id)


def _check_sees(by: Identity, project: str) -> None:
    if not by.may_see(project):
        raise missing_project(project)


def _check_role(by: Identity, role: Role) -> None:
    """Refuse to give or take a role that may do more than the caller. Raises Forbidden."""
    if denied := sorted(granted(role, ()) - by.scopes):
        raise Forbidden(
            f"you may not give or take the role {role}: it has the scope {denied[0]}, which you do not have"
        )
