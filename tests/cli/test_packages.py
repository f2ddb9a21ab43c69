"""A script that asks for packages where no network can be had: said in words, and the way out works."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command import belljar

pytestmark = pytest.mark.vm

NEEDS = b"# /// script\n# dependencies = ['greeting']\n# ///\nprint('no package was needed')\n"
#: For root and for anybody else: the range overlaps what machines see.
NO_NETWORK = {"BELLJAR_NETWORK_RANGE": "172.30.0.0/24"}


def test_where_no_network_can_be_had_it_says_what_to_do_and_keeps_nothing(data_dir: Path) -> None:
    words = ["run", "-", "--language", "python"]
    refused = belljar(*words, data_dir=data_dir, stdin=NEEDS, **NO_NETWORK)
    assert (refused.returncode, refused.stdout) == (125, b"")
    message = refused.stderr.decode().splitlines()[-1]
    assert message.startswith("belljar: the script block of") and "cannot have a network" in message, message
    assert "set dependencies to off" in message
    assert [path for path in (data_dir / "layers").rglob("*") if path.is_file()] == []
    ran = belljar(*words, data_dir=data_dir, stdin=NEEDS, BELLJAR_DEPENDENCIES="off", **NO_NETWORK)
    assert (ran.stdout, ran.stderr, ran.returncode) == (b"no package was needed\n", b"", 0)
