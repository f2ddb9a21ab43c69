"""Checks that the secrets in the data folder can be opened."""

from __future__ import annotations

from collections.abc import AsyncIterator

from belljar.control.secrets.keys import open_keys
from belljar.control.secrets.service import SecretService
from belljar.control.store.opening import database_path, open_database
from belljar.control.store.secrets import SqlSecrets
from belljar.doctor.check import Check
from belljar.model.errors import BelljarError, SecretsKeyError
from belljar.settings import Settings


async def check_secrets(settings: Settings) -> AsyncIterator[Check]:
    """Check one secret of each key; nothing where there are none."""
    try:
        if not database_path(settings).exists():
            return
        database = await open_database(settings, migrate=False)
    except BelljarError:
        return  # the server reports it at its start
    try:
        store = SqlSecrets(database)
        if await store.key_ids():
            yield Check("secrets", "ok", await SecretService(store, open_keys(settings)).check_key())
    except SecretsKeyError as error:
        why = "jobs that name secrets fail, and none can be set"
        yield Check("secrets", "fail", error.message, "restore the key (docs/secrets.md)", why)
    finally:
        await database.close()
