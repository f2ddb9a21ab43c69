"""Processes without huge pages, and the process that starts them, which keeps its own setting."""

from __future__ import annotations

import subprocess
import sys

from belljar.node.machines.host.huge_pages import no_huge_pages

SAYS = [sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0))"]


def setting() -> str:
    return subprocess.run(SAYS, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_only_processes_of_the_block_are_without_huge_pages() -> None:
    before = setting()
    with no_huge_pages():
        assert setting() == "1"
        with no_huge_pages():
            assert setting() == "1"
        assert setting() == "1"
    assert setting() == before


def test_overlapping_blocks_end_with_the_last() -> None:
    before = setting()
    first, second = no_huge_pages(), no_huge_pages()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert setting() == "1"
    second.__exit__(None, None, None)
    assert setting() == before
