"""The data folder: images and keys in it, and what is said when it cannot be used."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import stat
from pathlib import Path

import pytest

from cli.command import ORDINARY, belljar, complaint, output, parsed
from images.registered import register


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = parsed(belljar("key", "create", "ci", "--project", "team", "--json", data_dir=tmp_path))
    assert made["secret"].startswith("bj_") and (made["project"], made["admin"]) == ("team", False)
    secret = output(belljar("key", "create", "boss", "--admin", data_dir=tmp_path)).strip()
    assert secret.startswith("bj_")
    assert output(belljar("key", "revoke", made["id"], data_dir=tmp_path)) == ""
    listed = parsed(belljar("key", "ls", "--json", data_dir=tmp_path))
    assert [(key["name"], key["admin"], key["revoked_at"] is None) for key in listed] == [
        ("ci", False, False),
        ("boss", True, True),
    ]
    table = output(belljar("key", "ls", data_dir=tmp_path))
    assert "boss" in table and secret not in table and made["secret"] not in table


def test_images_are_listed_and_removed(tmp_path: Path) -> None:
    assert parsed(belljar("image", "ls", "--json", data_dir=tmp_path)) == []
    register(tmp_path, "python")
    register(tmp_path, "shell")
    assert [image["name"] for image in parsed(belljar("image", "ls", "--json", data_dir=tmp_path))] == [
        "python",
        "shell",
    ]
    assert output(belljar("image", "rm", "shell", data_dir=tmp_path)) == ""
    table = output(belljar("image", "ls", data_dir=tmp_path))
    assert "python" in table and "shell.json" not in [path.name for path in (tmp_path / "images").iterdir()]


def test_a_newer_data_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    output(belljar("key", "ls", data_dir=tmp_path))
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for words in (["key", "ls"], ["serve", "--port", "0"]):
        assert "newer belljar (schema 9999); upgrade" in complaint(belljar(*words, data_dir=tmp_path), 1)
    with sqlite3.connect(tmp_path / "belljar.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


def test_a_damaged_data_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "belljar.db").write_text("no database at all, but long enough to look like something" * 20)
    assert "damaged" in complaint(belljar("serve", "--port", "0", data_dir=tmp_path), 1)


def test_a_data_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for words in (["key", "ls"], ["serve", "--port", "0"]):
        text = complaint(belljar(*words, data_dir=tmp_path / "data"), 1)
        assert str(tmp_path / "data") in text and "--data-dir" in text


@pytest.mark.root
@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--port", "0"],
        ["worker"],
        ["key", "create", "ci"],
        ["image", "build", "python"],
        ["image", "rm", "python"],
        ["run", "hello.py"],
    ],
    ids=lambda words: words[0],
)
def test_a_data_folder_of_somebody_else_is_told(everybodys: Path, ordinary: list[str], words: list[str]) -> None:
    register(everybodys, "python")
    (everybodys / "hello.py").write_text("print(1)")
    before = sorted(path for path in everybodys.rglob("*"))
    result = belljar(*words, data_dir=everybodys, cwd=everybodys, before=ordinary)
    text = complaint(result, 125 if words[0] == "run" else 1)
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


def test_a_port_in_use_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = complaint(belljar("serve", "--port", port, data_dir=tmp_path / "data"), 1)
        assert f"port {port} on 127.0.0.1 is in use; choose another with --port" in text
    assert not (tmp_path / "data").exists()


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path: Path) -> None:
    result = belljar("doctor", "--json", data_dir=tmp_path)
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert (result.returncode, result.stderr) == (1, b"")
    assert checks["image"]["level"] == "fail" and checks["image"]["fix"] == "belljar image build python"
    assert all(check["fix"] for check in checks.values() if check["level"] == "fail")
    plain = belljar("doctor", data_dir=tmp_path).stdout.decode()
    assert "fail  image: no image is built\n      → belljar image build python\n" in plain
