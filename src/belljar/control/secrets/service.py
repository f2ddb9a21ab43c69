"""The secrets of projects: set, list, remove, and open them for the attempts of jobs that name them.

Values are never logged, and are in no error: a message names the secret.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import structlog

from belljar.control.secrets.keys import KeyRing, KeySource
from belljar.control.secrets.sealing import seal, unseal
from belljar.control.store.secrets import Sealed, SealedSecret, Secret, SqlSecrets
from belljar.link.secrets import JobSecret
from belljar.model.errors import InvalidOption, NotFound, SecretMissing, SecretsKeyError
from belljar.model.secrets import (
    MAX_ENV_SECRET_BYTES,
    MAX_JOB_SECRET_BYTES,
    MAX_SECRET_BYTES,
    SecretUse,
    SecretValue,
    check_secret_name,
)

log = structlog.get_logger()


class SecretService:
    """The operations on secrets."""

    def __init__(self, store: SqlSecrets, keys: KeySource) -> None:
        self._store = store
        self._keys = keys
        #: The keys as they were last read.
        self._ring: KeyRing | None = None

    async def set(self, project: str, name: str, value: SecretValue) -> Secret:
        """Store a new version of a secret. Raises InvalidOption, SecretsKeyError, DiskFull, HostError."""
        _check_name(name)
        if not 0 < len(value) <= MAX_SECRET_BYTES:
            reason = f"has {len(value)} bytes; at most {MAX_SECRET_BYTES} are allowed" if len(value) else "is empty"
            raise InvalidOption(f'the value of the secret "{name}" {reason}', option="value", limit=MAX_SECRET_BYTES)
        # A command that prints the key may take seconds, which no transaction should.
        await asyncio.to_thread(self._keys.load)

        def sealed(version: int, in_use: frozenset[str]) -> Sealed:
            return seal(self._sealing_ring(in_use).current, project, name, version, value)

        secret = await self._store.put(
            project, name, size_bytes=len(value), fits_variable=value.fits_variable, seal=sealed
        )
        log.info("secret_set", project=project, secret=name, version=secret.version)
        return secret

    async def list(self, project: str) -> list[Secret]:
        """Return the project's secrets, without their values."""
        return await self._store.list(project)

    async def remove(self, project: str, name: str) -> Secret:
        """Remove a secret: jobs that name it and have not started will fail. Raises NotFound."""
        secret = await self._store.remove(project, name)
        if secret is None:
            raise NotFound(
                f"there is no secret {name[:80]!r} in this project; list them with GET /v1/secrets or belljar secret ls"
            )
        log.info("secret_removed", project=project, secret=name, version=secret.version)
        return secret

    async def check(self, project: str, uses: Collection[SecretUse]) -> None:
        """Raise SecretMissing, InvalidOption when a job of the project cannot have these secrets now."""
        if uses:
            _check_uses(uses, await self._store.get(project, {use.name for use in uses}))

    async def open(self, project: str, uses: Collection[SecretUse]) -> tuple[JobSecret, ...]:
        """Return the newest versions of these secrets with their values.

        Raises SecretMissing, InvalidOption, SecretsKeyError, HostError.
        """
        found = await self._store.get(project, {use.name for use in uses})
        _check_uses(uses, found)
        return await asyncio.to_thread(lambda: tuple(self._opened(secret) for secret in found.values()))

    async def check_key(self) -> str:
        """Return a sentence about the key. Raises SecretsKeyError when secrets cannot be opened with it."""
        stored = await self._store.one_of_each_key()
        if not stored:
            return "there are no secrets"
        await asyncio.to_thread(lambda: [self._opened(secret) for secret in stored])
        older = "" if len(stored) == 1 else "; a rotation is not finished: belljar secret rotate-key"
        return f"secrets can be opened with the key in {self._keys.place}{older}"

    async def report_key(self) -> None:
        """Log an error when secrets cannot be opened: the operator should learn it before a job does."""
        try:
            await self.check_key()
        except SecretsKeyError as error:
            log.error("secrets_key_unusable", error=error.message)

    def _opened(self, secret: SealedSecret) -> JobSecret:
        key_id = secret.sealed.key_id
        key = self._ring.get(key_id) if self._ring is not None else None
        if key is None:  # the first use, or a rotation meanwhile
            self._ring = self._keys.load()
            key = self._ring.get(key_id) if self._ring is not None else None
        if key is None:
            raise self._unusable(key_id)
        return JobSecret(name=secret.name, version=secret.version, value=unseal(key, secret))

    def _sealing_ring(self, in_use: frozenset[str]) -> KeyRing:
        """Return the keys to seal with; make the first one only while no secret needs another."""
        ring = self._keys.load()
        if ring is None:
            if in_use:
                raise self._unusable(min(in_use))
            ring = self._keys.create()
            log.info("secrets_key_created", key=ring.current.id)
        if unknown := in_use - ring.ids:
            raise self._unusable(min(unknown))
        return ring

    def _unusable(self, key_id: str) -> SecretsKeyError:
        return SecretsKeyError(
            f"secrets are sealed with the key {key_id}, which is not in {self._keys.place}; restore that key, or "
            "remove these secrets and set them again"
        )


def _check_name(name: str) -> None:
    try:
        check_secret_name(name)
    except ValueError as error:
        raise InvalidOption(str(error), option="name") from None


def _check_uses(uses: Collection[SecretUse], found: Mapping[str, SealedSecret]) -> None:
    sizes = {"env": 0, "file": 0}
    for use in uses:
        secret = found.get(use.name)
        if secret is None:
            raise SecretMissing(
                f'there is no secret "{use.name}" in this project; set it with: belljar secret set {use.name}',
                option="secrets",
            )
        if use.form == "env" and not secret.fits_variable:
            raise InvalidOption(
                f'the secret "{use.name}" has a NUL character, which no variable can have; use it as a file',
                option="secrets",
            )
        sizes[use.form] += secret.size_bytes
    for size, limit, kind in (
        (sizes["env"], MAX_ENV_SECRET_BYTES, "secrets that are variables"),
        (sum(sizes.values()), MAX_JOB_SECRET_BYTES, "secrets of a job"),
    ):
        if size > limit:
            raise InvalidOption(
                f"the {kind} have {size} bytes together; at most {limit} are allowed: use fewer, or files",
                option="secrets",
                limit=limit,
            )
