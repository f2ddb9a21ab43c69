"""Seals a secret: AES-256-GCM with a random nonce, bound to its project, name and version.

A sealed value that is moved to another secret, or put back in place of a newer version, does not open.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from belljar.control.store.secrets import Sealed, SealedSecret
from belljar.model.errors import SecretsKeyError
from belljar.model.secrets import SecretValue

KEY_BYTES = 32
#: Random nonces of 96 bits: a collision under one key is improbable up to 2^32 values (NIST SP 800-38D, 8.3).
_NONCE_BYTES = 12
_PURPOSE = b"belljar secret 1"


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key of KEY_BYTES bytes. Its id is a digest, so that every process has the same name for it."""

    data: bytes = field(repr=False)

    @classmethod
    def new(cls) -> SealingKey:
        """Return a random key."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def id(self) -> str:
        """The key's name, which does not tell the key."""
        return hashlib.sha256(b"belljar sealing key id\0" + self.data).hexdigest()[:16]


def seal(key: SealingKey, project: str, name: str, version: int, value: SecretValue) -> Sealed:
    """Seal a value for its place."""
    nonce = os.urandom(_NONCE_BYTES)
    data = AESGCM(key.data).encrypt(nonce, value.reveal(), _place(project, name, version))
    return Sealed(key.id, nonce + data)


def unseal(key: SealingKey, secret: SealedSecret) -> SecretValue:
    """Return the value of a stored secret. Raises SecretsKeyError when it was changed, or sealed for another place."""
    nonce, data = secret.sealed.data[:_NONCE_BYTES], secret.sealed.data[_NONCE_BYTES:]
    try:
        opened = AESGCM(key.data).decrypt(nonce, data, _place(secret.project, secret.name, secret.version))
    except (InvalidTag, ValueError):
        raise SecretsKeyError(
            f'the secret "{secret.name}" of the project {secret.project} is damaged in the database; set it again'
        ) from None
    return SecretValue(opened)


def _place(project: str, name: str, version: int) -> bytes:
    """Return the associated data: every part with its length, so that no two places have the same."""
    parts = (_PURPOSE, project.encode(), name.encode())
    return b"".join(struct.pack("<I", len(part)) + part for part in parts) + struct.pack("<Q", version)
