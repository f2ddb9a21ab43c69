"""Creates, lists, rotates and revokes keys, within what the caller's own key may do.

No key creates, rotates or revokes one that may do more than it may itself, or one of another project.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import structlog

from belljar.control.jobs.changes import Changes
from belljar.control.projects.identity import Identity
from belljar.control.projects.key_format import new_secret
from belljar.control.projects.key_request import NewKey, Rotation
from belljar.control.projects.keys import Key
from belljar.control.projects.scopes import Scope, granted
from belljar.control.store.keys import SqlKeys, missing_key
from belljar.control.store.projects import missing_project
from belljar.model.errors import Forbidden, InvalidOption
from belljar.model.ids import new_id

log = structlog.get_logger()


class KeyService:
    """The operations of the API and the command line on keys."""

    def __init__(self, keys: SqlKeys, changes: Changes) -> None:
        self._keys = keys
        self._changes = changes

    async def create(self, by: Identity, new: NewKey) -> tuple[Key, str]:
        """Create a key in the caller's project, or in any for an operator. Return it with its secret.

        Raises Forbidden for scopes beyond the caller's, InvalidOption for a lifetime beyond it, NotFound (project),
        ProjectConflict.
        """
        project = new.project or by.project
        if not by.may_see(project):
            raise missing_project(project)
        role, scopes = new.given()
        _check_scopes(by, granted(role, scopes), "create a key with")
        expires_at = _expiry(new.expires_in_seconds)
        if by.expires_at is not None and (expires_at is None or expires_at > by.expires_at):
            raise InvalidOption(
                f"a key may not outlive the one that creates it, which expires at {by.expires_at:%Y-%m-%dT%H:%M:%SZ}; "
                "set a shorter expires_in_seconds",
                option="expires_in_seconds",
            )
        key, secret = await self._keys.create(project, new.name, role=role, scopes=scopes, expires_at=expires_at)
        log.info("key_created", id=key.id, project=project, by=by.id)
        return key, secret

    async def page(self, by: Identity, *, limit: int, after: str = "") -> tuple[list[Key], str | None]:
        """Return a page of the keys that the caller may see, oldest first, and the id after which the next begins."""
        found = await self._keys.list(by.only_project, after=after, limit=limit + 1)
        page = [key for key in found[:limit] if _may_see(by, key)]
        return page, found[limit - 1].id if len(found) > limit else None

    async def revoke(self, by: Identity, key_id: str) -> Key:
        """Revoke a key at once. Raises NotFound, Forbidden."""
        key = await self._get(by, key_id)
        _check_scopes(by, key.scopes, "revoke a key with")
        revoked = await self._keys.revoke(key_id)
        self._changes.notify_revoked(key_id)
        log.info("key_revoked", id=key_id, project=key.project, by=by.id)
        return revoked

    async def rotate(self, by: Identity, key_id: str, rotation: Rotation) -> tuple[Key, str]:
        """Create a key that replaces another, which stays valid for the overlap. Return it with its secret.

        The new key has the name, scopes and lifetime of the old one, but does not outlive the caller's.

        Raises NotFound, Forbidden, KeyConflict for a key that is not valid any more.
        """
        old = await self._get(by, key_id)
        _check_scopes(by, old.scopes, "rotate a key with")
        now = datetime.now(UTC)
        lifetime = old.expires_at - old.created_at if old.expires_at is not None else None
        ends = [now + lifetime] if lifetime is not None else []
        ends += [by.expires_at] if by.expires_at is not None else []
        new = Key(
            id=new_id("key"),
            name=old.name,
            project=old.project,
            role=old.role,
            extra_scopes=old.extra_scopes,
            created_at=now,
            expires_at=min(ends, default=None),
            replaces=old.id,
        )
        secret = new_secret()
        await self._keys.replace(old.id, new, secret, now + timedelta(seconds=rotation.overlap_seconds))
        log.info("key_rotated", id=old.id, new_id=new.id, project=old.project, by=by.id)
        return new, secret

    async def _get(self, by: Identity, key_id: str) -> Key:
        key = await self._keys.get(key_id)
        if key is None or not _may_see(by, key):
            raise missing_key(key_id)
        return key


def _may_see(by: Identity, key: Key) -> bool:
    """Return whether a key exists for the caller: operators' keys exist for operators only."""
    return by.is_operator or (key.project == by.project and not key.admin)


def _check_scopes(by: Identity, scopes: frozenset[Scope], doing: str) -> None:
    denied = sorted(scopes - by.scopes)
    if denied:
        first = Scope.ADMIN if Scope.ADMIN in denied else denied[0]
        raise Forbidden(f"your key may not {doing} the scope {first}, which it does not have itself")


def _expiry(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
