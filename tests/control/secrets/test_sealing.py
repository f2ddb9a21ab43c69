"""A sealed value opens with its key and in its place, and nowhere else."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.control.secrets.sealing import SealingKey, seal, unseal
from belljar.control.store.secrets import Sealed, SealedSecret
from belljar.model.errors import SecretsKeyError
from belljar.model.secrets import SecretValue

KEY = SealingKey.new()


def stored(value: bytes, **place: object) -> SealedSecret:
    fields = {"project": "mine", "name": "TOKEN", "version": 3} | place
    sealed = seal(KEY, str(fields["project"]), str(fields["name"]), int(str(fields["version"])), SecretValue(value))
    return SealedSecret(
        project=str(fields["project"]),
        name=str(fields["name"]),
        version=int(str(fields["version"])),
        size_bytes=len(value),
        fits_variable=True,
        sealed=sealed,
    )


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_open_again_and_are_not_in_what_is_stored(value: bytes) -> None:
    secret = stored(value)
    assert unseal(KEY, secret) == SecretValue(value)
    assert len(value) < 4 or value not in secret.sealed.data


def test_the_same_value_is_never_sealed_the_same() -> None:
    assert stored(b"value").sealed != stored(b"value").sealed


@pytest.mark.parametrize("moved", [{"project": "other"}, {"name": "OTHER"}, {"version": 4}, {"version": 2}])
def test_a_sealed_value_that_was_moved_does_not_open(moved: dict[str, object]) -> None:
    secret = dataclasses.replace(stored(b"value-1234"), **moved)  # type: ignore[arg-type]
    with pytest.raises(SecretsKeyError, match="damaged") as raised:
        unseal(KEY, secret)
    assert "value-1234" not in str(raised.value)


def test_places_with_the_same_letters_are_different() -> None:
    with pytest.raises(SecretsKeyError):
        unseal(KEY, dataclasses.replace(stored(b"v", project="ab", name="c"), project="a", name="bc"))


@given(st.integers(0, 37), st.integers(1, 255))
def test_a_changed_byte_is_found(at: int, change: int) -> None:
    secret = stored(b"0123456789")
    data = bytearray(secret.sealed.data)
    data[at] ^= change
    with pytest.raises(SecretsKeyError):
        unseal(KEY, dataclasses.replace(secret, sealed=Sealed(KEY.id, bytes(data))))


@pytest.mark.parametrize("length", [0, 5, 12, 27])
def test_a_truncated_value_is_found(length: int) -> None:
    secret = stored(b"0123456789")
    with pytest.raises(SecretsKeyError):
        unseal(KEY, dataclasses.replace(secret, sealed=Sealed(KEY.id, secret.sealed.data[:length])))


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(SecretsKeyError):
        unseal(SealingKey.new(), stored(b"value"))


def test_neither_a_value_nor_a_key_shows_itself() -> None:
    value, key = SecretValue(b"hunter2"), SealingKey(b"hunter2" * 4 + b"1234")
    for shown in (repr(value), str(value), f"{value}", f"{value!r}", repr([value]), repr(key), str(key)):
        assert "hunter2" not in shown
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(value)
    assert value == SecretValue(b"hunter2") and value != SecretValue(b"hunter3") and value != b"hunter2"
