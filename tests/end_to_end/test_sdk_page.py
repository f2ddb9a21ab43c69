"""The examples of docs/sdk.md, executed against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT
from support.running import Server

pytestmark = pytest.mark.vm

EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/sdk.md").read_text(), re.M | re.S)
PRINTED = [
    ["succeeded 42"],
    ["4", "9"],
    ["to stdout", "to stderr", "0 b'x'"],
    ["[7]", "[[3], [7]]", "ValueError isqrt() argument must be nonnegative"],
    ["0 1+2+3", "6", "SIGKILL"],
]


@pytest.mark.parametrize(("example", "printed"), list(zip(EXAMPLES, PRINTED, strict=True)))
def test_an_example_prints_what_it_should(server: Server, tmp_path: Path, example: str, printed: list[str]) -> None:
    (tmp_path / "example.py").write_text(example)
    key = server.http.headers["Authorization"].removeprefix("Bearer ")
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "BELLJAR_SERVER": server.url, "BELLJAR_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == printed
