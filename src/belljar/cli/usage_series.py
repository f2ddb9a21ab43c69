"""Shows what a machine used over its life: for each quantity a line with its curve, its average and its maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from belljar.cli.printing import print_line

_BARS = "▁▂▃▄▅▆▇█"
_COLUMNS = 60


def show_usage_series(series: dict[str, Any]) -> None:
    """Print the arrays of `GET …/metrics` as curves."""
    seconds = series["seconds"]
    if not seconds:
        print_line("no measurements: the first is taken a second after the start")
        return
    print_line(f"{len(seconds)} points over {seconds[-1]:.0f} s, one each {series['interval_seconds']:g} s")
    _show("cpu", series["cpu"], series["vcpus"], lambda value: f"{value:.2f}")
    _show("memory", series["memory_bytes"], series["memory_limit_bytes"], _mib)
    _show("disk", series["disk_bytes"], 0, _mib)
    _show("processes", series["processes"], 0, lambda value: f"{value:.0f}")
    for name in ("received", "sent"):
        if series[f"{name}_bytes"][-1]:
            _show(name, series[f"{name}_bytes"], 0, _mib)


def _show(name: str, values: Sequence[float], limit: float, text: Callable[[float], str]) -> None:
    """Print one quantity; the height of its curve is the limit, or the maximum without one."""
    average, maximum = sum(values) / len(values), max(values)
    of = f" of {text(limit)}" if limit else ""
    print_line(f"{name:10} {curve(values, limit or maximum)}  {text(average)} on average, {text(maximum)} at most{of}")


def curve(values: Sequence[float], top: float) -> str:
    """Return values as a line of bars, at most 60; each shows the largest of the values in its place."""
    width = min(_COLUMNS, len(values))
    groups = [values[len(values) * at // width : len(values) * (at + 1) // width] for at in range(width)]
    scale = (len(_BARS) - 1) / top if top else 0
    return "".join(_BARS[min(len(_BARS) - 1, round(max(group) * scale))] for group in groups)


def _mib(value: float) -> str:
    return f"{value / (1 << 20):.1f} MiB"
