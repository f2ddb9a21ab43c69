"""Secrets are set, versioned, listed, opened and removed; what a job cannot have is refused by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import structlog

from belljar.control.secrets.keys import KeyFile
from belljar.control.secrets.service import SecretService
from belljar.control.store.secrets import MAX_PROJECT_SECRETS, SqlSecrets
from belljar.model.errors import InvalidOption, NotFound, SecretMissing, SecretsKeyError
from belljar.model.secrets import MAX_ENV_SECRET_BYTES, MAX_SECRET_BYTES, SecretUse, SecretValue


def uses(*names: str, form: str = "env") -> list[SecretUse]:
    return [SecretUse.model_validate({"name": name, "as": form}) for name in names]


async def opened(secrets: SecretService, *names: str, project: str = "mine", form: str = "env") -> dict[str, bytes]:
    return {each.name: each.value.reveal() for each in await secrets.open(project, uses(*names, form=form))}


async def test_a_secret_is_opened_in_its_newest_version(secrets: SecretService) -> None:
    for number, value in enumerate((b"first", b"second", bytes(range(1, 256)) * 257), 1):
        secret = await secrets.set("mine", "TOKEN", SecretValue(value[:MAX_SECRET_BYTES]))
        assert (secret.name, secret.version) == ("TOKEN", number)
    assert await opened(secrets, "TOKEN") == {"TOKEN": (bytes(range(1, 256)) * 257)[:MAX_SECRET_BYTES]}
    (listed,) = await secrets.list("mine")
    assert listed.version == 3 and listed.created_at < listed.updated_at


async def test_each_project_has_its_own(secrets: SecretService) -> None:
    await secrets.set("mine", "TOKEN", SecretValue(b"mine"))
    await secrets.set("yours", "TOKEN", SecretValue(b"yours"))
    assert await opened(secrets, "TOKEN", project="yours") == {"TOKEN": b"yours"}
    await secrets.remove("yours", "TOKEN")
    assert await opened(secrets, "TOKEN") == {"TOKEN": b"mine"}
    with pytest.raises(SecretMissing, match='"TOKEN"'):
        await secrets.open("yours", uses("TOKEN"))
    with pytest.raises(NotFound):
        await secrets.remove("yours", "TOKEN")


@pytest.mark.parametrize("value", [b"", b"x" * (MAX_SECRET_BYTES + 1)])
async def test_a_value_out_of_bounds_is_refused(secrets: SecretService, value: bytes) -> None:
    with pytest.raises(InvalidOption, match="TOKEN"):
        await secrets.set("mine", "TOKEN", SecretValue(value))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 65, "é", "a\n", "-a"])
async def test_a_name_that_is_no_file_name_is_refused(secrets: SecretService, name: str) -> None:
    with pytest.raises(InvalidOption, match="invalid name"):
        await secrets.set("mine", name, SecretValue(b"value"))


async def test_a_value_with_a_nul_can_only_be_a_file(secrets: SecretService) -> None:
    await secrets.set("mine", "BLOB", SecretValue(b"a\0b"))
    for call in (secrets.check, secrets.open):
        with pytest.raises(InvalidOption, match=r"NUL.*file"):
            await call("mine", uses("BLOB"))
    assert await opened(secrets, "BLOB", form="file") == {"BLOB": b"a\0b"}


async def test_the_secrets_of_a_job_have_bounds_together(secrets: SecretService) -> None:
    for name in "ABCDEF":
        await secrets.set("mine", name, SecretValue(b"x" * (MAX_ENV_SECRET_BYTES - 8)))
    await secrets.check("mine", [*uses("A"), *uses("B", "C", form="file")])
    for wanted in (uses("A", "B"), uses("A", "B", "C", "D", "E", form="file")):
        with pytest.raises(InvalidOption, match="together"):
            await secrets.check("mine", wanted)


async def test_a_project_has_a_bounded_number(secrets: SecretService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_PROJECT_SECRETS == 1000
    monkeypatch.setattr("belljar.control.store.secrets.MAX_PROJECT_SECRETS", 2)
    for name in "AB":
        await secrets.set("mine", name, SecretValue(b"value"))
    with pytest.raises(InvalidOption, match="remove one first"):
        await secrets.set("mine", "C", SecretValue(b"value"))
    await secrets.set("mine", "B", SecretValue(b"another"))


async def test_a_lost_key_is_an_error_and_never_a_new_key(store: SqlSecrets, keys: KeyFile, tmp_path: Path) -> None:
    await SecretService(store, keys).set("mine", "TOKEN", SecretValue(b"value"))
    (tmp_path / "secrets.key").rename(tmp_path / "kept")
    secrets = SecretService(store, keys)
    for call in (
        lambda: secrets.set("mine", "NEW", SecretValue(b"value")),
        lambda: secrets.open("mine", uses("TOKEN")),
        lambda: secrets.check_key(),
    ):
        with pytest.raises(SecretsKeyError, match=r"restore that key"):
            await call()
    assert not (tmp_path / "secrets.key").exists()
    (tmp_path / "kept").rename(tmp_path / "secrets.key")
    assert await opened(secrets, "TOKEN") == {"TOKEN": b"value"}


async def test_another_key_is_an_error_and_seals_nothing(store: SqlSecrets, keys: KeyFile, tmp_path: Path) -> None:
    await SecretService(store, keys).set("mine", "TOKEN", SecretValue(b"value"))
    (tmp_path / "secrets.key").unlink()
    keys.create()
    secrets = SecretService(store, keys)
    with pytest.raises(SecretsKeyError, match="not in the file"):
        await secrets.set("mine", "NEW", SecretValue(b"value"))
    assert [each.name for each in await secrets.list("mine")] == ["TOKEN"]


async def test_nothing_of_a_value_is_on_the_disk_or_in_the_log(
    secrets: SecretService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = b"hunter2-hunter2-hunter2"
    with structlog.testing.capture_logs() as events, caplog.at_level(logging.DEBUG):
        await secrets.set("mine", "TOKEN", SecretValue(value))
        await secrets.open("mine", uses("TOKEN"))
        await secrets.remove("mine", "TOKEN")
    assert [event["event"] for event in events] == ["secrets_key_created", "secret_set", "secret_removed"]
    assert "hunter2" not in repr(events) and "hunter2" not in caplog.text
    assert all(value not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
