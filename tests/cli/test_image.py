"""`belljar image`: what the commands that change images record in the audit log."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.control.store.opening import open_database
from belljar.settings import Settings
from support.command import belljar_each, parsed
from support.registered_images import register

pytestmark = pytest.mark.process


async def test_changes_of_images_are_in_the_audit_log(tmp_path: Path) -> None:
    await (await open_database(Settings(data_dir=tmp_path))).close()
    digest = register(tmp_path).manifest.digest
    tagged, removed, collected, listed = belljar_each(
        ["image", "tag", "python", "stable"],
        ["image", "rm", "stable"],
        ["image", "gc"],
        ["audit", "--json"],
        data_dir=tmp_path,
    )
    assert [each.returncode for each in (tagged, removed, collected)] == [0, 0, 0]
    records = [(each["action"], each["object"], each["details"]) for each in reversed(parsed(listed))]
    assert records == [
        ("image.tag", "stable", {"digest": digest}),
        ("image.remove", "stable", {"digest": digest}),
    ]
    assert {each["actor"]["kind"] for each in parsed(listed)} == {"operator"}


async def test_without_a_database_nothing_is_recorded_and_none_is_made(tmp_path: Path) -> None:
    register(tmp_path)
    tagged, removed = belljar_each(["image", "tag", "python", "stable"], ["image", "rm", "stable"], data_dir=tmp_path)
    assert [each.returncode for each in (tagged, removed)] == [0, 0]
    assert not list(tmp_path.glob("*.db"))
