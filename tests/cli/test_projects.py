"""`belljar project` and `belljar key`: on the data folder beside a running server, and through the server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from belljar import __version__
from support.command import belljar, belljar_each, complaint, output, parsed
from support.running import Server, serving

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def server(data_dir: Path) -> Iterator[Server]:
    with serving(data_dir, "--no-worker") as server:
        yield server


def status(server: Server, secret: str, path: str = "/v1/jobs") -> tuple[int, str]:
    response = httpx.get(server.url + path, headers={"Authorization": f"Bearer {secret}"})
    return response.status_code, response.json().get("code", "")


def test_members_are_invited_listed_and_removed_on_the_data_folder_and_through_the_server(
    server: Server, data_dir: Path
) -> None:
    invited, listed, wrong, unknown, removed = belljar_each(
        ["project", "members", "set", "default", "Alice@example.com", "--role", "owner", "--json"],
        ["project", "members", "ls", "default"],
        ["project", "members", "set", "default", "alice@example.com", "--role", "admin"],
        ["project", "members", "rm", "default", "bob@example.com"],
        ["project", "members", "rm", "default", "alice@example.com", "--json"],
        data_dir=data_dir,
    )
    assert (parsed(invited)["email"], parsed(invited)["person_id"]) == ("alice@example.com", None)
    assert "alice@example.com  owner" in output(listed) and "invited" in output(listed)
    assert "role" in complaint(wrong, 1) and "bob@example.com" in complaint(unknown, 1)
    assert parsed(removed)["role"] == "owner"
    key = (data_dir / "admin.key").read_text().strip()
    far = ["--server", server.url, "--api-key", key]
    for words, email in ((["set", "default", "b@x.org"], ["b@x.org"]), (["rm", "default", "b@x.org"], [])):
        output(belljar("project", "members", *words, *far, data_dir=data_dir))
        members = parsed(belljar("project", "members", "ls", "default", *far, "--json", data_dir=data_dir))
        assert [member["email"] for member in members] == email


def test_what_commands_change_in_the_data_folder_a_running_server_knows_at_their_end(
    server: Server, data_dir: Path
) -> None:
    created, made = belljar_each(
        ["project", "create", "acme", "--json"],
        ["key", "create", "ci", "--project", "acme", "--role", "owner", "--expires", "30d", "--json"],
        data_dir=data_dir,
    )
    key = parsed(made)
    assert (parsed(created)["name"], key["project"], key["role"]) == ("acme", "acme", "owner")
    assert key["expires_at"] and status(server, key["secret"]) == (200, "")
    for words, expected in (
        (["project", "set", "acme", "--suspend"], (403, "project_suspended")),
        (["project", "set", "acme", "--resume"], (200, "")),
    ):
        assert output(belljar(*words, data_dir=data_dir)) == ""
        assert status(server, key["secret"]) == expected
    rotated = output(belljar("key", "rotate", key["id"], "--overlap", "0s", data_dir=data_dir)).strip()
    assert status(server, key["secret"]) == (401, "not_authenticated") and status(server, rotated) == (200, "")
    assert output(belljar("project", "rm", "acme", data_dir=data_dir)) == ""
    assert status(server, rotated) == (401, "not_authenticated")
    listed, table = belljar_each(["project", "ls", "--json"], ["project", "ls"], data_dir=data_dir)
    assert [(each["name"], bool(each["removed_at"])) for each in parsed(listed)] == [("acme", True), ("default", False)]
    assert "being removed" in output(table)


def test_an_owner_manages_the_keys_of_its_project_through_the_server(server: Server, data_dir: Path) -> None:
    owner = output(belljar("key", "create", "boss", "--project", "acme", "--role", "owner", data_dir=data_dir)).strip()
    remote = ["--server", server.url, "--api-key", owner]
    made, keys, projects = belljar_each(
        ["key", "create", "ci", "--scope", "jobs:run", "--scope", "jobs:read", "--json", *remote],
        ["key", "ls", "--json", *remote],
        ["project", "ls", "--json", *remote],
        data_dir=data_dir,
    )
    key = parsed(made)
    assert (key["project"], key["scopes"]) == ("acme", ["jobs:read", "jobs:run"])
    assert [each["name"] for each in parsed(keys)] == ["boss", "ci"]
    assert [each["name"] for each in parsed(projects)] == ["acme"]
    revoked, foreign, operators = belljar_each(
        ["key", "revoke", key["id"], "--json", *remote],
        ["key", "create", "x", "--project", "other", *remote],
        ["project", "create", "other", *remote],
        data_dir=data_dir,
    )
    assert parsed(revoked)["revoked_at"]
    assert "there is no project 'other'" in complaint(foreign, 1)
    assert "operator's key" in complaint(operators, 1)
    assert status(server, key["secret"]) == (401, "not_authenticated")


CASES: dict[str, tuple[list[str], str]] = {
    "name": (["project", "create", "a b"], "name: String should match pattern"),
    "newline": (["project", "create", "a\nb"], r"not 'a\nb'"),
    "existing": (["project", "create", "default"], "there is a project 'default' already"),
    "missing": (["project", "set", "nothing", "--suspend"], "there is no project 'nothing'"),
    "both": (["project", "set", "default", "--suspend", "--resume"], "one of --suspend and --resume"),
    "neither": (["project", "set", "default"], "set needs --suspend, --resume or a quota"),
    "cancel": (["project", "set", "default", "--resume", "--cancel-running"], "goes with --suspend only"),
    "scope": (["key", "create", "x", "--scope", "jobs:rum"], "known: jobs:run, jobs:read"),
    "role": (["key", "create", "x", "--role", "boss"], "known: owner, member, viewer"),
    "duration": (["key", "create", "x", "--expires", "3 weeks"], "a duration such as 30d"),
    "long": (["key", "create", "x", "--expires", "99999d"], "less than or equal to 315360000"),
    "zero": (["key", "create", "x", "--expires", "0d"], "a duration such as 30d"),
    "overlap": (["key", "rotate", "key_1", "--overlap", "90d"], "less than or equal to 2592000"),
    "key": (["key", "rotate", "key_1"], "there is no key 'key_1'"),
}


def test_mistakes_are_one_line_that_says_what_to_do(data_dir: Path) -> None:
    results: list[Any] = belljar_each(*(words for words, _ in CASES.values()), data_dir=data_dir)
    for (name, (_, expected)), result in zip(CASES.items(), results, strict=True):
        assert expected in complaint(result, 1), name
    assert output(belljar("key", "ls", "--json", data_dir=data_dir)).strip() == "[]"


def test_the_version_is_an_option_too(data_dir: Path) -> None:
    option, command = belljar_each(["--version"], ["version"], data_dir=data_dir)
    assert output(option) == output(command) == f"{__version__}\n"


def test_quotas_are_set_and_usage_is_shown(server: Server, data_dir: Path) -> None:
    created, made = belljar_each(
        ["project", "create", "acme", "--json"],
        ["key", "create", "ci", "--project", "acme", "--role", "owner", "--json"],
        data_dir=data_dir,
    )
    assert parsed(created)["name"] == "acme"
    words = ["project", "set", "acme", "--max-running-jobs", "4", "--max-egress", "pypi.org", "--keep-jobs-days", "1.5"]
    changed = parsed(belljar(*words, "--json", data_dir=data_dir))
    assert changed["quotas"]["max_running_jobs"] == 4 and changed["limits"]["keep_jobs_days"] == 1.5
    again = ["project", "set", "acme", "--max-egress", "default", "--max-queued-jobs", "unlimited", "--json"]
    through = parsed(belljar(*again, "--server", server.url, data_dir=data_dir))
    assert (through["quotas"]["max_egress"], through["quotas"]["max_queued_jobs"]) == (None, "unlimited")
    table = output(belljar("project", "get", "acme", data_dir=data_dir))
    assert re.search(r"max_running_jobs +4 +of the project", table)
    assert re.search(r"max_jobs_per_day +unlimited", table) and re.search(r"max_vcpus +as in the settings", table)
    key = parsed(made)["secret"]
    usage = parsed(belljar("usage", "--api-key", key, "--days", "2", "--json", data_dir=data_dir))
    assert (usage["project"], len(usage["days"]), usage["quotas"][0]["limit"]) == ("acme", 2, 4)
    shown = output(belljar("usage", "--project", "acme", data_dir=data_dir))
    assert shown.startswith("project acme, ") and re.search(r"max_running_jobs +0 +4 +4", shown)
    for bad, message in (
        (["--max-running-jobs", "many"], "--max-running-jobs takes a number, unlimited or default, not 'many'"),
        (["--max-running-jobs", "-3"], "max_running_jobs"),
        (["--max-egress", "localhost"], "max_egress"),
        ([], "set needs --suspend, --resume or a quota"),
    ):
        assert message in complaint(belljar("project", "set", "acme", *bad, data_dir=data_dir), 1)
