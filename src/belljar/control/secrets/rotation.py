"""Changes the key that secrets are sealed with. It may be killed at any point: the next call continues.

The old key stays until the last secret is sealed with the new one. What is set meanwhile, by any process, is sealed
with the new one too: every write of a secret reads the key in its transaction.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from belljar.control.secrets.keys import KeyRing, KeySource
from belljar.control.secrets.sealing import SealingKey, seal, unseal
from belljar.control.store.secrets import Sealed, SealedSecret, SqlSecrets
from belljar.model.errors import SecretsKeyError

log = structlog.get_logger()

#: Secrets that are sealed anew in one transaction.
_BATCH = 100


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation has done."""

    key_id: str
    resealed: int
    #: Whether it has finished an earlier one, and made no key of its own.
    continued: bool


async def rotate_key(store: SqlSecrets, keys: KeySource) -> Rotation:
    """Seal all secrets with a new key, or finish an earlier rotation. Raises SecretsKeyError, HostError."""
    # A command that prints the key may take seconds, which no transaction should.
    await asyncio.to_thread(keys.load)
    ring, is_new = await store.exclusively(lambda in_use: _next_ring(keys, in_use))
    current = ring.current

    def reseal(secret: SealedSecret) -> Sealed:
        old = ring.get(secret.sealed.key_id)
        if old is None:
            raise _missing(secret.sealed.key_id, keys)
        return seal(current, secret.project, secret.name, secret.version, unseal(old, secret))

    resealed, is_over = 0, False
    while not is_over:
        while count := await store.reseal(current.id, _BATCH, reseal):
            resealed += count
        is_over = await store.exclusively(lambda in_use: _forget_older(keys, current, in_use))
    log.info("secrets_key_rotated", key=current.id, secrets=resealed)
    return Rotation(current.id, resealed, continued=not is_new)


def _next_ring(keys: KeySource, in_use: frozenset[str]) -> tuple[KeyRing, bool]:
    """Return the keys to rotate to, stored; and whether the first of them is new."""
    ring = keys.load()
    if ring is None:
        if in_use:
            raise _missing(min(in_use), keys)
        return keys.create(), True
    if unknown := in_use - ring.ids:
        raise _missing(min(unknown), keys)
    if ring.older:
        return ring, False
    new = KeyRing(SealingKey.new(), (ring.current,))
    keys.replace(new)
    return new, True


def _forget_older(keys: KeySource, current: SealingKey, in_use: frozenset[str]) -> bool:
    """Remove the older keys if no secret needs one. Return whether all secrets have this key, or a later one."""
    ring = keys.load()
    if ring is None or ring.current != current:
        return True  # another rotation has begun since
    if in_use - {current.id}:
        return False
    if keys.is_stored and ring.older:
        keys.replace(KeyRing(current))
    return True


def _missing(key_id: str, keys: KeySource) -> SecretsKeyError:
    return SecretsKeyError(
        f"secrets are sealed with the key {key_id}, which is not in {keys.place}; restore that key first"
    )
