"""Who sends a request, in which project it acts, and what it may do there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from belljar.control.projects.scopes import ALL_SCOPES, Role, Scope, granted

#: The project of the operator's first key, and of requests with `--auth off`.
DEFAULT_PROJECT = "default"


class IdentityKind(StrEnum):
    """What authenticated the request."""

    KEY = "key"
    #: A person who signed in.
    PERSON = "person"
    #: Nothing: the server runs with `--auth off`.
    NOBODY = "nobody"
    #: A command on the server's host that works on the data folder itself.
    HOST = "host"


@dataclass(frozen=True, kw_only=True, slots=True)
class BrowserSession:
    """The session that a request's cookie names."""

    id: str
    expires_at: datetime
    #: What forms of this session carry (`belljar.control.api.form_token`).
    form_token: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The caller of one request."""

    kind: IdentityKind
    #: The id of the key or person. Limits, revocation and logs go by it.
    id: str
    #: A name to show.
    name: str
    #: The project in which the request acts.
    project: str
    #: The project that listings over projects are limited to; None: all, for an operator who named no project.
    only_project: str | None
    #: What it may do; all scopes for an operator.
    scopes: frozenset[Scope]
    #: When it stops being valid, also for a stream that has begun.
    expires_at: datetime | None = None
    #: The roles of a person, by project. They act in one project at a time, with the role there.
    roles: Mapping[str, Role] = field(default_factory=dict)
    #: None: the request has no cookie of a session.
    session: BrowserSession | None = None

    @property
    def is_operator(self) -> bool:
        """Return whether it may do everything in every project, and may see details of the hosts."""
        return Scope.ADMIN in self.scopes

    def may(self, scope: Scope) -> bool:
        """Return whether it has this scope."""
        return scope in self.scopes

    def may_see(self, project: str) -> bool:
        """Return whether this project exists for it; others answer 404."""
        return self.is_operator or project == self.project

    def acting_in(self, project: str) -> Identity:
        """Return the identity of a request that acts in this project, and sees no other."""
        scopes = self.scopes
        if self.kind is IdentityKind.PERSON and not self.is_operator:
            scopes = granted(self.roles.get(project), ())
        return replace(self, project=project, only_project=project, scopes=scopes)


def nobody() -> Identity:
    """Return the identity of requests with `--auth off`: the operator."""
    return _operator(IdentityKind.NOBODY, "key_none", "auth is off")


def host_operator() -> Identity:
    """Return the identity of commands on the data folder, whose files only the operator can read."""
    return _operator(IdentityKind.HOST, "host", "a command on the host")


def _operator(kind: IdentityKind, id: str, name: str) -> Identity:
    return Identity(kind=kind, id=id, name=name, project=DEFAULT_PROJECT, only_project=None, scopes=ALL_SCOPES)
