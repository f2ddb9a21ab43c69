"""A rotation seals every secret anew, survives being stopped anywhere, and keeps the old key until the end."""

from __future__ import annotations

import asyncio
import base64

import pytest

from belljar.control.secrets.keys import FixedKeys, KeyFile, KeyRing
from belljar.control.secrets.rotation import rotate_key
from belljar.control.secrets.sealing import SealingKey
from belljar.control.secrets.service import SecretService
from belljar.control.store.secrets import SqlSecrets
from belljar.model.errors import SecretsKeyError
from belljar.model.secrets import SecretUse, SecretValue

COUNT = 7


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("belljar.control.secrets.rotation._BATCH", 3)


async def filled(secrets: SecretService) -> None:
    for number in range(COUNT):
        await secrets.set("mine", f"S{number}", SecretValue(b"value %d" % number))


async def values(secrets: SecretService) -> list[bytes]:
    uses = [SecretUse(name=f"S{number}") for number in range(COUNT)]
    return sorted(each.value.reveal() for each in await secrets.open("mine", uses))


EXPECTED = [b"value %d" % number for number in range(COUNT)]


class Stopped(Exception):
    """The process was killed here."""


class StopsAfter:
    """A store that is stopped after so many writes of a rotation."""

    def __init__(self, store: SqlSecrets, writes: int) -> None:
        self._store = store
        self._left = writes

    def __getattr__(self, name: str) -> object:
        async def call(*args: object) -> object:
            if self._left == 0:
                raise Stopped
            self._left -= 1
            return await getattr(self._store, name)(*args)

        return call if name in ("exclusively", "reseal") else getattr(self._store, name)


async def test_all_secrets_have_the_new_key_and_the_old_one_is_gone(
    store: SqlSecrets, keys: KeyFile, secrets: SecretService
) -> None:
    await filled(secrets)
    before = keys.load()
    done = await rotate_key(store, keys)
    assert (done.resealed, done.continued) == (COUNT, False)
    assert await store.key_ids() == {done.key_id}
    after = keys.load()
    assert before is not None and after is not None and after.ids == {done.key_id} and before.ids != after.ids
    assert await values(secrets) == EXPECTED  # by a service that knew the old key
    assert await values(SecretService(store, keys)) == EXPECTED


@pytest.mark.parametrize("writes", range(6))
async def test_one_that_was_stopped_is_finished_by_the_next(
    store: SqlSecrets, keys: KeyFile, secrets: SecretService, writes: int
) -> None:
    await filled(secrets)
    with pytest.raises(Stopped):
        await rotate_key(StopsAfter(store, writes), keys)  # type: ignore[arg-type]
    assert await values(secrets) == EXPECTED
    await secrets.set("mine", "S0", SecretValue(b"value 0"))
    done = await rotate_key(store, keys)
    assert done.continued == (writes > 0)
    ring = keys.load()
    assert ring is not None and await store.key_ids() == ring.ids == {done.key_id}
    assert await values(secrets) == EXPECTED


async def test_secrets_that_are_set_meanwhile_are_not_lost(
    store: SqlSecrets, keys: KeyFile, secrets: SecretService
) -> None:
    await filled(secrets)

    async def set_often() -> None:
        for number in range(40):
            await secrets.set("mine", f"S{number % COUNT}", SecretValue(b"value %d" % (number % COUNT)))

    await asyncio.gather(set_often(), rotate_key(store, keys), set_often())
    ring = keys.load()
    assert ring is not None and await store.key_ids() == ring.ids and len(ring.ids) == 1
    assert await values(SecretService(store, keys)) == EXPECTED


async def test_a_rotation_without_the_key_changes_nothing(
    store: SqlSecrets, keys: KeyFile, secrets: SecretService
) -> None:
    await filled(secrets)
    lost = keys.load()
    assert lost is not None
    keys.replace(KeyRing(SealingKey.new()))
    with pytest.raises(SecretsKeyError, match="restore"):
        await rotate_key(store, keys)
    keys.replace(lost)
    assert await values(SecretService(store, keys)) == EXPECTED


async def test_keys_of_the_environment_are_rotated_by_naming_a_new_one_first(store: SqlSecrets) -> None:
    old, new = SealingKey.new(), SealingKey.new()
    texts = [base64.b64encode(key.data) for key in (new, old)]
    first = FixedKeys("the setting", text=texts[1])
    await filled(SecretService(store, first))
    with pytest.raises(SecretsKeyError, match="put a new key before"):
        await rotate_key(store, first)
    done = await rotate_key(store, FixedKeys("the setting", text=b",".join(texts)))
    assert (done.key_id, done.resealed) == (new.id, COUNT)
    assert await values(SecretService(store, FixedKeys("the setting", text=texts[0]))) == EXPECTED


async def test_a_rotation_before_the_first_secret_makes_the_key(store: SqlSecrets, keys: KeyFile) -> None:
    done = await rotate_key(store, keys)
    ring = keys.load()
    assert ring is not None and ring.ids == {done.key_id} and done.resealed == 0
