"""Scopes: what a key may do. Roles: sets of scopes by a name.

A key that was given a role has the scopes of that role in this version: a role may gain scopes with new features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType


class Scope(StrEnum):
    """One right. Every route requires one (`belljar.control.api.rules`)."""

    #: Submit and cancel jobs.
    JOBS_RUN = "jobs:run"
    #: Read jobs, their logs and artifacts.
    JOBS_READ = "jobs:read"
    #: Upload and delete scripts.
    SCRIPTS_WRITE = "scripts:write"
    SCRIPTS_READ = "scripts:read"
    #: Change images, which all projects share.
    IMAGES_WRITE = "images:write"
    IMAGES_READ = "images:read"
    SANDBOXES = "sandboxes"
    SERVICES = "services"
    #: Set and delete secrets.
    SECRETS_WRITE = "secrets:write"
    #: Read the names of secrets; no scope allows to read a value.
    SECRETS_READ = "secrets:read"
    USAGE_READ = "usage:read"
    AUDIT_READ = "audit:read"
    #: Create, list, rotate and revoke the keys of the own project, and see the project.
    PROJECT_ADMIN = "project:admin"
    #: The operator: everything, in every project.
    ADMIN = "admin"


class Role(StrEnum):
    """A named set of scopes for a key, or for a person in a project."""

    OWNER = "owner"
    MEMBER = "member"
    VIEWER = "viewer"


ALL_SCOPES = frozenset(Scope)
_VIEWER = frozenset({Scope.JOBS_READ, Scope.SCRIPTS_READ, Scope.IMAGES_READ, Scope.USAGE_READ})
_MEMBER = _VIEWER | {
    Scope.JOBS_RUN,
    Scope.SCRIPTS_WRITE,
    Scope.SANDBOXES,
    Scope.SERVICES,
    Scope.SECRETS_WRITE,
    Scope.SECRETS_READ,
}
#: No role has `images:write`, since all projects share the images.
ROLE_SCOPES: Mapping[Role, frozenset[Scope]] = MappingProxyType(
    {
        Role.OWNER: _MEMBER | {Scope.AUDIT_READ, Scope.PROJECT_ADMIN},
        Role.MEMBER: _MEMBER,
        Role.VIEWER: _VIEWER,
    }
)


def granted(role: Role | None, scopes: Iterable[Scope]) -> frozenset[Scope]:
    """Return what a role and further scopes allow together. `admin` allows everything."""
    together = frozenset(scopes) | (ROLE_SCOPES[role] if role is not None else frozenset())
    return ALL_SCOPES if Scope.ADMIN in together else together
