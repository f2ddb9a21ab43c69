"""Files stay small, and lock files carry hashes and no address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.paths import ROOT

MAX_LINES = 400
CODE = {".py", ".c", ".h"}


def sources() -> list[Path]:
    paths = [path for folder in ("src", "tests") for path in sorted((ROOT / folder).rglob("*.[pch]*"))]
    return [path for path in paths if path.suffix in CODE]


def test_every_file_stays_below_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in long.items() if lines > MAX_LINES} == {}


def test_every_package_has_tests() -> None:
    packages = {path.name for path in (ROOT / "src/belljar").iterdir() if (path / "__init__.py").exists()}
    untested = {name for name in packages if not list((ROOT / "tests" / name).rglob("test_*.py"))}
    # Commands run through the client and the composition, with real servers, in tests/cli.
    assert untested <= {"client", "app"}


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_lock_files_have_hashes_and_no_address(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)
    packages = re.findall(r"^([A-Za-z0-9][^\s=]*)==[^\n]*?(\\?)$", text, re.M)
    assert packages
    assert [name for name, more in packages if not more] == [], "a package without a hash"
    assert text.count("--hash=sha256:") >= len(packages)
