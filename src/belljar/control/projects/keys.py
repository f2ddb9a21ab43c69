"""The record of a key."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, computed_field, field_serializer

from belljar.control.projects.identity import Identity, IdentityKind
from belljar.control.projects.scopes import ALL_SCOPES, Role, Scope, granted


class Key(BaseModel):
    """The record of a key, without its secret."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    name: str
    project: str
    role: Role | None = None
    """The role that it was given."""
    extra_scopes: frozenset[Scope] = Field(frozenset(), exclude=True)
    """The scopes that it was given beside the role's."""
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    replaces: str | None = None
    """The id of the key that was rotated."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def scopes(self) -> frozenset[Scope]:
        """What it may do, now."""
        return granted(self.role, self.extra_scopes)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def admin(self) -> bool:
        """Whether it is an operator's."""
        return Scope.ADMIN in self.extra_scopes

    @field_serializer("scopes")
    def _sorted(self, scopes: frozenset[Scope]) -> list[str]:
        return sorted({Scope.ADMIN} if scopes == ALL_SCOPES else scopes)

    def public(self) -> dict[str, Any]:
        """Return the fields for its project's administrators."""
        return self.model_dump(mode="json")

    def identity(self) -> Identity:
        """Return the identity of requests with this key, which act in its project."""
        return Identity(
            kind=IdentityKind.KEY,
            id=self.id,
            name=self.name,
            project=self.project,
            only_project=None if self.admin else self.project,
            scopes=self.scopes,
            expires_at=self.expires_at,
        )
