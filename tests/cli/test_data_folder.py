"""The data folder: images and keys in it, and what is said when it cannot be used."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import stat
from pathlib import Path

import pytest

from belljar.control.store.opening import open_database
from belljar.settings import Settings
from support.command import ORDINARY, belljar, belljar_each, complaint, output, parsed
from support.older_database import make_older
from support.registered_images import register

pytestmark = pytest.mark.process


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made, boss = belljar_each(
        ["key", "create", "ci", "--project", "team", "--json"], ["key", "create", "boss", "--admin"], data_dir=tmp_path
    )
    key, secret = parsed(made), output(boss).strip()
    assert key["secret"].startswith("bj_") and (key["project"], key["admin"]) == ("team", False)
    assert secret.startswith("bj_")
    revoked, listed, table = belljar_each(
        ["key", "revoke", key["id"]], ["key", "ls", "--json"], ["key", "ls"], data_dir=tmp_path
    )
    assert output(revoked) == ""
    assert [(each["name"], each["admin"], each["revoked_at"] is None) for each in parsed(listed)] == [
        ("ci", False, False),
        ("boss", True, True),
    ]
    assert "boss" in output(table) and secret not in output(table) and key["secret"] not in output(table)


def test_images_are_listed_and_removed(tmp_path: Path) -> None:
    register(tmp_path, "python")
    register(tmp_path, "shell")
    before, removed, table, last, nothing = belljar_each(
        ["image", "ls", "--json"],
        ["image", "rm", "shell"],
        ["image", "ls"],
        ["image", "rm", "python"],
        ["image", "ls", "--json"],
        data_dir=tmp_path,
    )
    assert [image["name"] for image in parsed(before)] == ["python", "shell"]
    assert output(removed) == output(last) == ""
    assert "python" in output(table) and not any(line.startswith("shell ") for line in output(table).splitlines())
    assert parsed(nothing) == []


async def test_a_folder_that_cannot_be_served_is_reported_and_left_as_it_is(tmp_path: Path) -> None:
    newer, damaged, a_file, unborn = (tmp_path / name for name in ("newer", "damaged", "file", "unborn"))
    await (await open_database(Settings(data_dir=newer))).close()
    with sqlite3.connect(newer / "belljar.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    damaged.mkdir()
    (damaged / "belljar.db").write_text("no database at all, but long enough to look like something" * 20)
    a_file.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        results = belljar_each(
            ["serve", "--port", "0", "--data-dir", str(newer)],
            ["serve", "--port", "0", "--data-dir", str(damaged)],
            ["serve", "--port", "0", "--data-dir", str(a_file)],
            ["serve", "--port", str(port), "--data-dir", str(unborn)],
            data_dir=tmp_path,
        )
    of_newer, of_damaged, of_file, of_port = (complaint(result, 1) for result in results)
    assert "newer version (schema 9999); upgrade" in of_newer
    with sqlite3.connect(newer / "belljar.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    assert "damaged" in of_damaged and str(damaged) in of_damaged
    assert str(a_file) in of_file and "--data-dir" in of_file
    assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in of_port
    assert not unborn.exists()


def test_commands_beside_a_server_of_an_older_version_change_nothing(tmp_path: Path) -> None:
    make_older(tmp_path)
    register(tmp_path, "python")
    commands = [["gc"], ["gc", "--dry-run"], ["image", "gc"], ["image", "rm", "python"], ["key", "create", "ci"]]
    for result in belljar_each(*commands, data_dir=tmp_path):
        text = complaint(result, 1)
        assert "is of an older version (schema 0002" in text and "start belljar serve" in text
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]


@pytest.mark.root
def test_a_data_folder_of_another_user_is_reported(everybodys: Path, ordinary: list[str]) -> None:
    register(everybodys, "python")
    (everybodys / "hello.py").write_text("print(1)")
    before = sorted(path for path in everybodys.rglob("*"))
    calls = [
        ["serve", "--port", "0"],
        ["worker"],
        ["key", "create", "ci"],
        ["image", "build", "python"],
        ["image", "rm", "python"],
        ["run", "hello.py"],
    ]
    for result in belljar_each(*calls, data_dir=everybodys, cwd=everybodys, before=ordinary):
        text = complaint(result, 125 if result.args[0] == "run" else 1)
        assert str(everybodys) in text and ("--data-dir" in text or "Permission denied" in text)
    assert sorted(path for path in everybodys.rglob("*")) == before


@pytest.mark.root
def test_an_ordinary_users_folder_is_that_users_alone(everybodys: Path, ordinary: list[str]) -> None:
    home = everybodys / "home"
    home.mkdir()
    shutil.chown(home, ORDINARY, ORDINARY)
    output(belljar("key", "create", "ci", before=ordinary, HOME=str(home), XDG_DATA_HOME=""))
    folder = home / ".local/share/belljar"
    assert (folder / "belljar.db").stat().st_uid == ORDINARY
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path: Path) -> None:
    result = belljar("doctor", "--json", data_dir=tmp_path)
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert (result.returncode, result.stderr) == (1, b"")
    assert checks["image"]["level"] == "fail" and checks["image"]["fix"] == "belljar image build python"
    assert all(check["fix"] for check in checks.values() if check["level"] == "fail")
    plain = belljar("doctor", data_dir=tmp_path).stdout.decode()
    assert "fail  image: no image is built\n      → belljar image build python\n" in plain
