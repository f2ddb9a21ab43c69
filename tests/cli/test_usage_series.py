"""Curves of a machine's usage on a terminal."""

from __future__ import annotations

import pytest

from belljar.cli.usage_series import curve, show_usage_series
from support.usage import usage_of


def test_a_curve_shows_the_largest_of_the_values_in_each_place() -> None:
    assert curve([0, 1, 2, 4], 4) == "▁▃▅█"
    assert curve([0.0] * 3, 0) == "▁▁▁"
    long = curve([0.0] * 119 + [1.0], 1)
    assert len(long) == 60 and long.endswith("█") and long.count("█") == 1


def test_each_quantity_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    series = usage_of(1.0, 2.0).model_copy(
        update={"cpu": (0.5, 1.0), "vcpus": 1, "memory_bytes": (1 << 20, 3 << 20), "memory_limit_bytes": 4 << 20}
    )
    show_usage_series(series.model_dump())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 points over 2 s, one each 1 s"
    assert lines[1].split() == ["cpu", "▅█", "0.75", "on", "average,", "1.00", "at", "most", "of", "1.00"]
    assert "2.0 MiB on average, 3.0 MiB at most of 4.0 MiB" in lines[2]
    assert [line.split()[0] for line in lines[1:]] == ["cpu", "memory", "disk", "processes"]
