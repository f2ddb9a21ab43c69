"""docs/protocol.md is the protocol: its version and its table of frames are those of the code."""

from __future__ import annotations

import re

from belljar.node.guest import wire
from support.paths import ROOT

PAGE = (ROOT / "docs/protocol.md").read_text()


def test_the_version_is_the_codes() -> None:
    assert re.search(r"^Version (\d+)\.", PAGE, re.M)[1] == str(wire.VERSION)  # type: ignore[index]


def test_the_table_has_every_frame_and_no_other() -> None:
    rows = re.findall(r"^\| (0x[0-9A-F]{2}) \| `([A-Z_]+)` \| (.+) \|$", PAGE, re.M)
    assert [(int(number, 16), name) for number, name, _ in rows] == [(kind.value, kind.name) for kind in wire.Kind]


def test_every_frame_stands_in_a_conversation() -> None:
    _, _, conversations = PAGE.partition("## The conversation\n")
    assert [kind.name for kind in wire.Kind if not re.search(rf"\b{kind.name}\b", conversations)] == []


def test_the_limits_are_the_codes() -> None:
    for limit in (wire.MAX_PAYLOAD, wire.MAX_PATH_BYTES, wire.MAX_PID, wire.MAX_ERRNO, wire.STDIN_WINDOW):
        assert f"{limit:,}" in PAGE
    assert f"seed {wire.SEED_BYTES} bytes" in PAGE
