"""`belljar audit`: beside a running server with TLS, through it, and without it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from belljar.client import Client, Unreachable
from belljar.control.api.authority import LocalAuthority
from belljar.local_server import read_admin_key, read_local_server
from support.command import belljar, belljar_each, complaint, output, parsed
from support.paths import ROOT

pytestmark = pytest.mark.process


@contextlib.contextmanager
def serving(data_dir: Path, *flags: str) -> Iterator[list[str]]:
    """`belljar serve` without a worker and without a terminal; yields the lines that it printed at its start."""
    command = [sys.executable, "-m", "belljar", "serve", "--no-worker", "--port", "0", "--data-dir", str(data_dir)]
    log = data_dir.with_suffix(".log")
    with log.open("wb") as file:
        process = subprocess.Popen([*command, *flags], stderr=file, env=os.environ, start_new_session=True)
    try:
        for _ in range(600):
            if read_local_server(data_dir) is not None and "belljar serves on" in log.read_text():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(log.read_text() + str(process.wait(0.1)))
        if flags:
            process.send_signal(signal.SIGHUP)  # without a terminal, this reads the certificate again
        yield log.read_text().splitlines()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
    assert not flags or "tls_reloaded" in log.read_text()


def test_the_log_is_read_exported_and_verified_in_every_way(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with serving(data_dir, "--tls", "generate") as lines:
        local = read_local_server(data_dir)
        assert local is not None and local.ca_file is not None and local.url.startswith("https://")
        assert re.search(r"--ca-file \S+/tls/ca\.pem, sha256 [0-9a-f]{64}", "\n".join(lines))
        secret = read_admin_key(data_dir)
        remote = ["--server", local.url, "--ca-file", str(local.ca_file), "--api-key", str(secret)]
        here, created, listed, everything, verified, newest, found, exported = belljar_each(
            ["jobs", "ls", "--json"],
            ["key", "create", "ci", "--project", "shop", "--json"],
            ["audit", "--json"],
            ["audit", *remote, "--json"],
            ["audit", "verify", *remote],
            ["audit", "--action", "key.create", "--project", "shop", "--since", "1h", "--limit", "1"],
            ["audit", "--until", "1h", "--json"],
            ["audit", *remote, "--export"],
            data_dir=data_dir,
        )
        assert parsed(here)["jobs"] == []
        assert parsed(listed) == parsed(everything)
        record = parsed(listed)[0]
        assert (record["action"], record["object"], record["project"]) == ("key.create", parsed(created)["id"], "shop")
        assert record["actor"]["kind"] == "operator" and record["actor"]["id"] == f"uid:{os.getuid()}"
        assert {each["action"] for each in parsed(listed)} == {"key.create", "server.start"}
        assert "3 rows verified: intact" in output(verified)
        assert output(newest).count("key.create") == 1
        assert parsed(found) == []
        lines = output(exported).splitlines()
        assert [json.loads(line)["seq"] for line in lines] == [1, 2, 3]
        with pytest.raises(Unreachable, match="--ca-file"):
            Client(local.url, secret).jobs()
        with pytest.raises(Unreachable, match="no PEM file"):
            Client(local.url, secret, ca_file=data_dir / "admin.key")
        assert httpx.get(local.url.replace("https", "http") + "/healthz").status_code == 400
    verify_by_the_documentation(tmp_path, output(exported))

    verified, kept = belljar_each(["audit", "verify", "--json"], ["audit", "verify"], data_dir=data_dir)
    assert (parsed(verified)["intact"], parsed(verified)["rows"]) == (True, 4)
    head = output(kept).splitlines()[-1].removeprefix("head ")
    with contextlib.closing(sqlite3.connect(data_dir / "belljar.db", isolation_level=None)) as connection:
        connection.execute("UPDATE audit SET object = 'key_other' WHERE seq = 3")
        connection.execute("DELETE FROM audit WHERE seq = 4")
    failed = belljar("audit", "verify", "--head", head, data_dir=data_dir)
    assert failed.returncode == 1
    assert b"row 3 was edited" in failed.stderr
    assert b"rows 4 to 4 are missing at the end" in failed.stderr
    assert b"CHANGED" in failed.stdout


def verify_by_the_documentation(folder: Path, exported: str) -> None:
    """Run the program of docs/audit.md on an export, and on a changed one."""
    page = (ROOT / "docs/audit.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    for text, code in ((exported, 0), (exported.replace('"ci"', '"cd"'), 1)):
        (folder / "audit.jsonl").write_text(text)
        assert subprocess.run([sys.executable, "-c", program], cwd=folder, stderr=subprocess.DEVNULL).returncode == code


def test_commands_on_this_machine_trust_a_certificate_for_another_name(tmp_path: Path) -> None:
    authority = LocalAuthority(tmp_path / "made")
    authority.ensure(["runner.example"])
    data_dir, file = tmp_path / "data", str(authority.server_file)
    with serving(data_dir, "--tls-cert", file, "--tls-key", file):
        assert parsed(belljar("jobs", "ls", "--json", data_dir=data_dir))["jobs"] == []


def test_mistakes_are_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    cases = {
        "'soon' is no time": ["audit", "--since", "soon"],
        "NUMBER:HASH": ["audit", "verify", "--head", "x"],
        "cannot read the TLS certificate /none": ["serve", "--tls-cert", "/none", "--tls-key", "/none"],
        "--tls-key is missing": ["serve", "--tls-cert", "/none"],
        "invalid setting tls": ["serve", "--tls", "on"],
        "cannot use the certificate /none": ["jobs", "ls", "--server", "https://127.0.0.1:9", "--ca-file", "/none"],
    }
    for reason, result in zip(cases, belljar_each(*cases.values(), data_dir=tmp_path / "data"), strict=True):
        assert reason in complaint(result, 1)


def test_the_documentation_lists_every_action() -> None:
    from fastapi.routing import APIRoute, iter_route_contexts

    from belljar.control.api.app import create_app
    from belljar.control.api.audited import action_of

    page = (ROOT / "docs/audit.md").read_text().partition("## What is recorded")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", page))
    routes = [context.original_route for context in iter_route_contexts(create_app(None).routes)]
    actions = {action_of(route.endpoint) for route in routes if isinstance(route, APIRoute)} - {None}
    assert actions <= listed, "add the actions to docs/audit.md"
