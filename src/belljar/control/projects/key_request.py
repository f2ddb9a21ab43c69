"""What a caller sends to create or rotate a key."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from belljar.control.projects.project import MAX_NAME_CHARACTERS, NAME
from belljar.control.projects.scopes import Role, Scope

_DAY = 24 * 3600
MAX_LIFETIME_SECONDS = 3650 * _DAY
MAX_OVERLAP_SECONDS = 30 * _DAY


class NewKey(BaseModel):
    """A key to create. Without `role`, `scopes` and `admin`, it has the role `member`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NAME)
    """What the key is for."""
    project: str | None = Field(None, min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=NAME)
    """Its project; default: that of the request. An operator creates a new project by naming it."""
    role: Role | None = None
    """A named set of scopes."""
    scopes: frozenset[Scope] = frozenset()
    """Scopes beside those of the role."""
    admin: bool = False
    """Whether it is an operator's key, like the scope `admin`."""
    expires_in_seconds: int | None = Field(None, ge=1, le=MAX_LIFETIME_SECONDS)
    """Its lifetime; default: until it is revoked."""

    def given(self) -> tuple[Role | None, frozenset[Scope]]:
        """Return the role and the further scopes that the key is given."""
        scopes = self.scopes | ({Scope.ADMIN} if self.admin else frozenset())
        return (self.role if self.role is not None or scopes else Role.MEMBER), scopes


class Rotation(BaseModel):
    """How to rotate a key."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    overlap_seconds: int = Field(3600, ge=0, le=MAX_OVERLAP_SECONDS)
    """For how long the old secret stays valid."""
