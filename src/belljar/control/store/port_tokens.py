"""Tokens for the ports of sandboxes; only a digest of each is stored. They go with the end of their sandbox."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, or_, select

from belljar.control.sandboxes.port_token import PortToken, PortVisit
from belljar.control.store.audit import record_change
from belljar.control.store.database import Database
from belljar.control.store.sandbox_rows import read_sandbox
from belljar.control.store.sandbox_tables import port_tokens, sandboxes
from belljar.control.store.schema import projects
from belljar.model.errors import Conflict
from belljar.model.ids import new_id

#: Tokens of one sandbox that are valid at once.
MAX_TOKENS = 100
#: What a token begins with. The rest has 256 random bits.
PREFIX = "bjp_"


class SqlPortTokens:
    """The tokens in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(
        self, project: str, sandbox_id: str, port: int, lifetime_seconds: float | None
    ) -> tuple[PortToken, str] | None:
        """Make a token; return it and its secret, which is not stored. None when the project has no such sandbox.

        One that has ended gets none. Raises Conflict for one with too many.
        """
        secret = PREFIX + secrets.token_urlsafe(32)

        def add(connection: Connection) -> PortToken | None:
            sandbox = read_sandbox(connection, *_of(project, sandbox_id))
            if sandbox is None or sandbox.status.terminal:
                return None
            now = datetime.now(UTC)
            of_sandbox = port_tokens.c.sandbox_id == sandbox_id
            connection.execute(port_tokens.delete().where(of_sandbox, port_tokens.c.expires_at <= now))
            count = connection.execute(select(func.count()).select_from(port_tokens).where(of_sandbox)).scalar_one()
            if count >= MAX_TOKENS:
                raise Conflict(f"the sandbox has {count} tokens for its ports, the maximum; revoke some first")
            token = PortToken(
                id=new_id("pt"),
                sandbox_id=sandbox_id,
                port=port,
                created_at=now,
                expires_at=None if lifetime_seconds is None else now + timedelta(seconds=lifetime_seconds),
            )
            values = token.model_dump() | {"project": project, "secret_sha256": _digest(secret)}
            connection.execute(port_tokens.insert().values(**values))
            record_change(connection, "sandbox.create_port_token", token.id, project=project, port=port)
            return token

        token = await self._database.writing(add)
        return None if token is None else (token, secret)

    async def list(self, project: str, sandbox_id: str, port: int) -> list[PortToken]:
        """Return the tokens of a port that are valid, the newest first."""
        query = (
            select(port_tokens)
            .where(port_tokens.c.project == project, port_tokens.c.sandbox_id == sandbox_id, port_tokens.c.port == port)
            .order_by(port_tokens.c.id.desc())
        )

        rows = await self._database.reading(lambda connection: connection.execute(query.where(_is_valid())).all())
        return [_token_of(row) for row in rows]

    async def remove(self, project: str, sandbox_id: str, port: int, token_id: str) -> bool:
        """Revoke a token; return False when there is none."""
        query = port_tokens.delete().where(
            port_tokens.c.id == token_id,
            port_tokens.c.project == project,
            port_tokens.c.sandbox_id == sandbox_id,
            port_tokens.c.port == port,
        )

        def remove(connection: Connection) -> bool:
            if not connection.execute(query).rowcount:
                return False
            record_change(connection, "sandbox.revoke_port_token", token_id, project=project, port=port)
            return True

        return await self._database.writing(remove)

    async def visit(self, sandbox_id: str, port: int, secret: str | None) -> PortVisit | None:
        """Return the sandbox for a visitor of its port, and the token that lets it in; None when nothing does.

        Whether there is no such sandbox or no right to it costs the same two reads.
        """

        def visit(connection: Connection) -> PortVisit | None:
            suspended = select(projects.c.name).where(projects.c.suspended_at.is_not(None))
            found = read_sandbox(connection, sandboxes.c.id == sandbox_id, sandboxes.c.project.not_in(suspended))
            token = _find(connection, sandbox_id, port, secret)
            if found is None or (token is None and port not in found.spec.public_ports):
                return None
            return PortVisit(sandbox=found, port=port, token=token)

        return await self._database.reading(visit)


def _find(connection: Connection, sandbox_id: str, port: int, secret: str | None) -> PortToken | None:
    digest = _digest(secret or "")
    query = select(port_tokens).where(
        port_tokens.c.secret_sha256 == digest,
        port_tokens.c.sandbox_id == sandbox_id,
        port_tokens.c.port == port,
        _is_valid(),
    )
    row = connection.execute(query).one_or_none()
    # The index compared digests, which tells nothing about a secret; the last word is here.
    if secret is None or row is None or not hmac.compare_digest(row.secret_sha256, digest):
        return None
    return _token_of(row)


def _is_valid() -> ColumnElement[bool]:
    return or_(port_tokens.c.expires_at.is_(None), port_tokens.c.expires_at > datetime.now(UTC))


def _token_of(row: Row[Any]) -> PortToken:
    return PortToken(**{name: row._mapping[name] for name in PortToken.model_fields})


def _of(project: str, sandbox_id: str) -> tuple[ColumnElement[bool], ...]:
    return sandboxes.c.id == sandbox_id, sandboxes.c.project == project


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
