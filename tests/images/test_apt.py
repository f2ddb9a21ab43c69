"""The mirrors of the host's apt, in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from belljar.images.apt import configured_mirrors

ONE_LINE = """
# deb http://old.example/debian bookworm main
deb http://one.example/debian bookworm main  # trailing
deb [signed-by=/usr/share/keyrings/a.gpg arch=amd64] http://sec.example/debian-security bookworm-security main
deb-src http://src.example/debian bookworm main
deb http://two.example/debian bookworm main
deb http://packages.example/postgres bookworm-pgdg main
"""
DEB822 = """
Types: deb deb-src
URIs: http://one.example/debian http://spare.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://sec.example/debian-security
Suites: bookworm-security
Components: main

Types: deb-src
URIs: http://src.example/debian
Suites: trixie
"""
BOTH = {
    "bookworm": "http://one.example/debian",
    "bookworm-security": "http://sec.example/debian-security",
}


@pytest.mark.parametrize(
    ("name", "text"),
    [("sources.list", ONE_LINE), ("sources.list.d/a.list", ONE_LINE), ("sources.list.d/a.sources", DEB822)],
)
def test_both_formats_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)
    assert configured_mirrors("bookworm", tmp_path) == BOTH
    assert configured_mirrors("trixie", tmp_path) == {}


def test_the_first_mirror_of_a_suite_is_used(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/b.sources").write_text(DEB822.replace("one", "later"))
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    assert configured_mirrors("bookworm", tmp_path) == BOTH


def test_mirrors_of_other_distributions_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb http://archive.ubuntu.com/ubuntu bookworm main\n")
    assert configured_mirrors("bookworm", tmp_path) == {}


@pytest.mark.parametrize("text", ["", "deb\n", "deb http://x\n", "\xff\n", "Types: deb\n"])
def test_unreadable_sources_are_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_bytes(text.encode("latin-1"))
    (tmp_path / "sources.list.d/a.sources").write_bytes(text.encode("latin-1"))
    assert configured_mirrors("bookworm", tmp_path) == {}


def test_a_host_without_apt_has_none(tmp_path: Path) -> None:
    assert configured_mirrors("bookworm", tmp_path / "nowhere") == {}
