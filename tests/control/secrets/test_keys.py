"""Where the key comes from: a file that is made once, the environment, a command; and what is refused."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from belljar.control.secrets.keys import FixedKeys, KeyFile, KeyRing, open_keys, parse_keys
from belljar.control.secrets.sealing import SealingKey
from belljar.model.errors import SecretsKeyError
from belljar.settings import Settings, load_settings
from belljar.settings.secrets import remove_key_from_environment

OLD, NEW = SealingKey(b"o" * 32), SealingKey(b"n" * 32)


def text(*keys: SealingKey, separator: str = "\n") -> str:
    return separator.join(base64.b64encode(key.data).decode() for key in keys)


def test_the_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keys = KeyFile(tmp_path / "secrets.key")
        assert keys.load() is None
        made = keys.create()
    finally:
        os.umask(before)
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600
    assert keys.create() == keys.load() == made
    assert [path.name for path in tmp_path.iterdir()] == ["secrets.key"]


def test_processes_that_make_it_at_once_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: KeyFile(tmp_path / "k").create().current.id, range(32)))
    assert len(set(made)) == 1


def test_the_first_key_seals_and_the_others_only_open(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "k")
    keys.replace(KeyRing(NEW, (OLD,)))
    ring = keys.load()
    assert ring is not None and ring.current == NEW and ring.get(OLD.id) == OLD and ring.get("x") is None


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "k")
    keys.create()
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(SecretsKeyError, match="chmod 600"):
        keys.load()
    (tmp_path / "link").symlink_to(tmp_path / "k")
    with pytest.raises(SecretsKeyError):
        KeyFile(tmp_path / "link").load()


@pytest.mark.parametrize("bad", ["", "not base64!", base64.b64encode(b"x" * 31).decode(), f"{text(OLD)}\nrubbish"])
def test_what_is_no_key_is_refused_and_not_quoted(bad: str) -> None:
    with pytest.raises(SecretsKeyError, match="head -c 32") as raised:
        parse_keys(bad.encode(), "here")
    assert not bad or bad not in str(raised.value)


def test_the_environment_has_the_key_and_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLJAR_SECRETS_KEY", text(NEW, OLD, separator=","))
    settings = load_settings(data_dir=tmp_path)
    remove_key_from_environment()
    assert "BELLJAR_SECRETS_KEY" not in os.environ and text(NEW) not in repr(settings)
    keys = open_keys(settings)
    assert keys.load() == KeyRing(NEW, (OLD,)) and list(tmp_path.iterdir()) == []
    with pytest.raises(SecretsKeyError, match="put a new key before the old one"):
        keys.replace(KeyRing(OLD))


def test_a_command_prints_the_key_once(tmp_path: Path) -> None:
    (tmp_path / "k").write_text(text(NEW))
    command = f"sh -c 'cat {tmp_path / 'k'}; echo x >> {tmp_path / 'calls'}'"
    keys = open_keys(Settings(data_dir=tmp_path, secrets_key_command=command))
    assert keys.load() == keys.load() == KeyRing(NEW)
    assert (tmp_path / "calls").read_text() == "x\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [("sh -c 'echo secret; echo why >&2; exit 3'", "exit 3.*why"), ("/no/such", "No such file"), ("'", "no valid")],
)
def test_a_command_that_fails_says_why_without_its_output(command: str, reason: str) -> None:
    with pytest.raises(SecretsKeyError, match=reason) as raised:
        FixedKeys("the command", command=command).load()
    assert "secret;" not in str(raised.value)


@pytest.mark.parametrize("fields", [{}, {"secrets_key_file": "elsewhere/key"}])
def test_the_settings_name_the_file(tmp_path: Path, fields: dict[str, Any]) -> None:
    place = tmp_path / fields.get("secrets_key_file", "secrets.key")
    place.parent.mkdir(exist_ok=True)
    open_keys(Settings(data_dir=tmp_path, **({"secrets_key_file": place} if fields else {}))).create()
    assert place.exists()
