"""What --artifacts and --artifact ask for."""

from __future__ import annotations

import pytest

from belljar.cli.job_request import chosen_globs


def test_without_a_glob_everything_but_caches_is_asked_for_where_a_folder_is_given() -> None:
    assert chosen_globs(None, wanted=False) is None
    everything = chosen_globs(None, wanted=True)
    assert everything is not None and everything[0] == "**"
    assert {"!**/__pycache__", "!**/.pytest_cache", "!**/.cache"} <= set(everything)


@pytest.mark.parametrize("wanted", [True, False])
def test_globs_of_the_callers_stand_alone(wanted: bool) -> None:
    assert chosen_globs(["**"], wanted=wanted) == ["**"]
    assert chosen_globs(["out", "!out/tmp"], wanted=wanted) == ["out", "!out/tmp"]


def test_what_only_takes_out_takes_out_of_everything() -> None:
    globs = chosen_globs(["!*.log"], wanted=False)
    assert globs is not None and (globs[0], globs[-1]) == ("**", "!*.log")
