"""The records of people, of members of projects, and of sessions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from belljar.control.projects.keys import Key
from belljar.control.projects.scopes import Role
from belljar.model.errors import InvalidOption

MAX_EMAIL_CHARACTERS = 254
#: Strict enough for a name in paths, logs and pages; whether the address exists is the provider's business.
_EMAIL = re.compile(r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")


def email_of(given: str) -> str:
    """Return an address in the form in which it is compared: lower case. Raises InvalidOption."""
    email = given.strip().lower()
    if len(email) > MAX_EMAIL_CHARACTERS or not _EMAIL.match(email):
        raise InvalidOption(f"{given[:80]!r} is no address of email; use one such as alice@example.com", option="email")
    return email


class Person(BaseModel):
    """Somebody who signed in by OpenID Connect: `subject` at `issuer`, whatever the address of email becomes."""

    model_config = ConfigDict(frozen=True)

    id: str
    issuer: str
    subject: str
    email: str
    name: str
    created_at: datetime
    signed_in_at: datetime


class Member(BaseModel):
    """A person in a project, or the invitation of one by an address of email."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    project: str
    email: str
    """The address that was invited."""
    role: Role
    person_id: str | None = None
    """Who claimed the invitation by signing in with this address; from then on the member is that person."""
    name: str | None = None
    current_email: str | None = None
    """The person's address at their last sign-in."""
    signed_in_at: datetime | None = None
    created_at: datetime

    def public(self) -> dict[str, Any]:
        """Return the fields for the project's administrators."""
        return self.model_dump(mode="json")


class MemberChange(BaseModel):
    """What a caller sends to invite a member or to change one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    role: Role
    """What the member may do in the project."""


class Membership(BaseModel):
    """One project of a person."""

    model_config = ConfigDict(frozen=True)

    role: Role
    is_suspended: bool


class Session(BaseModel):
    """A session of a browser, without its secret."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    person_id: str | None = None
    key_id: str | None = None
    """The key that it was started with."""
    created_at: datetime
    used_at: datetime
    expires_at: datetime
    """When it ends, whatever happens."""
    ended_at: datetime | None = None
    address: str
    """The address that it was started from."""
    browser: str

    def public(self) -> dict[str, Any]:
        """Return the fields for its owner."""
        return self.model_dump(mode="json")


class SessionOwner(BaseModel):
    """Whose session to start, and where."""

    model_config = ConfigDict(frozen=True)

    person_id: str | None = None
    key_id: str | None = None
    address: str = Field("", max_length=100)
    browser: str = Field("", max_length=200)


class KnownSession(BaseModel):
    """A session with what its identity is made of, as the database has it now."""

    model_config = ConfigDict(frozen=True)

    session: Session
    #: Whose it is: a person's or a key's. Both None: they are not in the database any more.
    person: Person | None = None
    key: Key | None = None
    #: Whether the key's project is suspended.
    is_suspended: bool = False
    #: By the name of the project; without projects that are being removed.
    memberships: Mapping[str, Membership] = {}
