"""The tables of people, of the members of projects, and of sessions."""

from __future__ import annotations

from sqlalchemy import Column, Index, String, Table, UniqueConstraint

from belljar.control.store.metadata import UtcTime, metadata

#: Who signed in by OpenID Connect.
people = Table(
    "people",
    metadata,
    Column("id", String, primary_key=True),
    Column("issuer", String, nullable=False),
    Column("subject", String, nullable=False),
    #: As the provider verified it at the last sign-in; lower case.
    Column("email", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("signed_in_at", UtcTime, nullable=False),
    UniqueConstraint("issuer", "subject"),
)

members = Table(
    "members",
    metadata,
    Column("project", String, primary_key=True),
    #: The address that was invited; lower case.
    Column("email", String, primary_key=True),
    Column("role", String, nullable=False),
    #: Who claimed the invitation at a sign-in. From then on the address does not matter.
    Column("person_id", String),
    Column("created_at", UtcTime, nullable=False),
    Index("ix_members_person", "person_id", "project"),
    Index("ix_members_email", "email"),
)

#: Sessions of browsers, of a person or of a key.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String, primary_key=True),
    Column("secret_sha256", String, nullable=False, unique=True),
    Column("person_id", String),
    Column("key_id", String),
    #: Digest of the sign-in's state, so that one sign-in starts one session.
    Column("state_sha256", String, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    #: Where it was started, for its owner to recognize.
    Column("address", String, nullable=False),
    Column("browser", String, nullable=False),
    Index("ix_sessions_person", "person_id", "id"),
    Index("ix_sessions_key", "key_id", "id"),
    Index("ix_sessions_ended", "ended_at"),
)
