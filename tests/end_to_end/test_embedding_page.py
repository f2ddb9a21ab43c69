"""The examples of docs/embedding.md, executed against a real server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.paths import ROOT
from support.running import Server

pytestmark = pytest.mark.vm

PAGE = (ROOT / "docs/embedding.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_python_example_prints_the_result(server: Server) -> None:
    (example,) = blocks("python")
    key = server.http.headers["Authorization"].removeprefix("Bearer ")
    code = f"URL, KEY = {server.url!r}, {key!r}\n{example}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=130)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["succeeded 0", "42", "not_found"]


def test_the_curl_examples_run_a_job(server: Server) -> None:
    commands = [line for block in blocks("") for line in block.replace("\\\n", "").splitlines() if "curl" in line]
    assert len(commands) == 5
    prefix = f"URL={server.url} AUTH='Authorization: {server.http.headers['Authorization']}'; "
    ids: dict[str, str] = {}
    output = ""
    for command in commands:
        for name, value in ids.items():
            command = command.replace(name, value)
        run = subprocess.run(
            ["bash", "-c", prefix + command], cwd=ROOT, capture_output=True, text=True, timeout=130, check=True
        )
        output = run.stdout
        ids |= {name.upper(): value for name, value in re.findall(r'"(script_id|job_id)":\s*"(\w+)"', output)}
    assert "Linux belljar" in output
