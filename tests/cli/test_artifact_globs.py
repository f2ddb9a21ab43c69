"""What --artifacts and --artifact request."""

from __future__ import annotations

import pytest

from belljar.cli.flags import artifact_globs


def test_without_a_glob_everything_but_caches_is_requested_where_a_folder_is_given() -> None:
    assert artifact_globs(None, wanted=False) is None
    everything = artifact_globs(None, wanted=True)
    assert everything is not None and everything[0] == "**"
    assert {"!**/__pycache__", "!**/.pytest_cache", "!**/.cache"} <= set(everything)


@pytest.mark.parametrize("wanted", [True, False])
def test_globs_of_the_callers_stand_alone(wanted: bool) -> None:
    assert artifact_globs(["**"], wanted=wanted) == ["**"]
    assert artifact_globs(["out", "!out/tmp"], wanted=wanted) == ["out", "!out/tmp"]


def test_what_only_takes_out_takes_out_of_everything() -> None:
    globs = artifact_globs(["!*.log"], wanted=False)
    assert globs is not None and (globs[0], globs[-1]) == ("**", "!*.log")
