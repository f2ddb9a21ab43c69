"""The examples of docs/contexts.md in real machines, and the kernels with the interpreters of the images."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from belljar.client import Client, Conflict
from support.paths import ROOT
from support.running import Server

pytestmark = pytest.mark.vm

EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/contexts.md").read_text(), re.M | re.S)
PRINTED = [
    ["adding up 8", "{'apple': 3, 'pear': 5}", "KeyError True"],
    ["stdout 9", "result {'done': True}", "True 3"],
    ["<svg", "'one\\n'"],
]


def key_of(server: Server) -> str:
    return str(server.http.headers["Authorization"].removeprefix("Bearer "))


@pytest.mark.parametrize(("example", "printed"), list(zip(EXAMPLES, PRINTED, strict=True)))
def test_an_example_prints_what_it_should(server: Server, tmp_path: Path, example: str, printed: list[str]) -> None:
    (tmp_path / "example.py").write_text(example)
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "BELLJAR_SERVER": server.url, "BELLJAR_API_KEY": key_of(server)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == printed


def test_a_python_context_in_a_machine(server: Server) -> None:
    with Client(server.url, key_of(server)) as client, client.sandbox("python", shape={"memory_mb": 192}) as box:
        box.files.write("own.py", "def double(n): return 2 * n")
        assert box.run_code("import own; own.double(21)").text == "42"
        assert (
            box.run_code("import subprocess; subprocess.run(['id', '-u'], capture_output=True).stdout").text
            == "b'1000\\n'"
        )
        assert box.run_code("import sqlite3, json, asyncio; await asyncio.sleep(0.01, 'awaited')").text == "'awaited'"
        late = box.run_code("import time\nn = 1\ntime.sleep(60)", timeout_seconds=1)
        assert late.timed_out and not late.restarted and box.run_code("n").text == "1"
        second = box.context(env={"A": "1"})
        assert second.run("import os; os.environ['A'], os.getcwd()").text == "('1', '/work')"
        with pytest.raises(Conflict) as died:
            second.run("data = []\nwhile True: data.append(bytearray(b'x' * 10_000_000))")
        assert died.value.code == "context_died" and died.value.details["out_of_memory"], died.value.details
        assert "memory_mb" in died.value.message
        assert box.run_code("n").text == "1"  # the other context lives
        assert second.restart().run("1 + 1").text == "2"


def test_a_javascript_context_in_a_machine(server: Server, scripting_image: Path) -> None:
    with Client(server.url, key_of(server)) as client, client.sandbox("node", shape={"memory_mb": 256}) as box:
        assert box.run_code("const x = 20; console.log('out')", "javascript").stdout == "out\n"
        assert box.run_code("const x = await Promise.resolve(21); x * 2", "javascript").text == "42"
        assert box.run_code("({a: [x]})", "js").json == {"a": [21]}
        assert box.run_code("import { basename } from 'node:path'\nbasename('/a/b')", "js").text == "'b'"
        failed = box.run_code("function f() {\n  return x.y.z\n}\nf()", "javascript")
        assert failed.error is not None and "cell-5:2" in failed.error.traceback
        late = box.run_code("await new Promise(() => {})", "javascript", timeout_seconds=1)
        assert late.timed_out and not late.restarted
        assert box.run_code("x", "javascript").text == "21"
        late = box.run_code("while (true);", "javascript", timeout_seconds=1)
        assert late.timed_out and not late.restarted
        assert box.run_code("x", "javascript").text == "21"
