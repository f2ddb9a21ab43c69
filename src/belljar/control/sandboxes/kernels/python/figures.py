"""Plots: open figures of matplotlib become results as PNG, with the data of simple charts."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

CHART = "application/vnd.belljar.chart+json"
_PYPLOT = "matplotlib.pyplot"
#: Points of one line that a chart's data has.
_MAX_POINTS = 1000
_MAX_SERIES = 50


class AfterImport:
    """A finder that calls a function with a module once it has been imported."""

    def __init__(self, calls: dict[str, Callable[[ModuleType], None]]) -> None:
        self._calls = calls

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the spec that the other finders have, with a loader that calls the function."""
        call = self._calls.pop(name, None)
        spec = importlib.util.find_spec(name) if call is not None else None
        if call is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            call(module)

        spec.loader.exec_module = execute_and_call  # type: ignore[method-assign]
        return spec


class Figures:
    """Shows the figures of matplotlib, if user code imports that."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        """`show` takes a MIME bundle."""
        self._show = show
        # The backend without windows. It is in the environment so that child processes have it, too.
        os.environ.setdefault("MPLBACKEND", "agg")

    def patch(self, pyplot: ModuleType) -> None:
        """Let `plt.show()` show the open figures."""
        setattr(pyplot, "show", lambda *_, **__: self.show_open())  # noqa: B010

    def show_open(self) -> None:
        """Show the figures that are open, and close them."""
        pyplot = sys.modules.get(_PYPLOT)
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        numbers = pyplot.get_fignums()
        try:
            for number in numbers:
                self._show(figure_bundle(pyplot.figure(number)))
        finally:
            if numbers:
                pyplot.close("all")

    def close(self, figure: Any) -> None:
        """Close a figure that was shown as a value."""
        pyplot = sys.modules.get(_PYPLOT)
        if pyplot is not None:
            pyplot.close(figure)


def is_figure(value: Any) -> bool:
    """Return whether a value is a figure of matplotlib."""
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(value, module.Figure)


def figure_bundle(figure: Any) -> dict[str, Any]:
    """Return a figure as PNG, with the data of its charts."""
    image = io.BytesIO()
    figure.savefig(image, format="png", bbox_inches="tight")
    bundle = {"image/png": image.getvalue(), "text/plain": repr(figure)}
    with contextlib.suppress(Exception):  # the data is an addition, and any artist may be in the figure
        charts = [_chart(axes) for axes in figure.axes]
        if any(chart["series"] for chart in charts):
            bundle[CHART] = charts
    return bundle


def _chart(axes: Any) -> dict[str, Any]:
    series = [
        {"type": "line", "label": _label(line), "points": _points(line.get_xdata(), line.get_ydata())}
        for line in axes.get_lines()
    ]
    for container in axes.containers:
        if type(container).__name__ == "BarContainer":
            series.append(_bars(axes, container))
    for collection in axes.collections:
        if type(collection).__name__ == "PathCollection":
            x, y = zip(*collection.get_offsets())
            series.append({"type": "scatter", "label": _label(collection), "points": _points(x, y)})
    return {
        "title": axes.get_title(),
        "x_label": axes.get_xlabel(),
        "y_label": axes.get_ylabel(),
        "series": series[:_MAX_SERIES],
    }


def _bars(axes: Any, container: Any) -> dict[str, Any]:
    is_vertical = container.orientation != "horizontal"
    ticks = axes.xaxis if is_vertical else axes.yaxis
    names = [each.get_text() for each in ticks.get_ticklabels()] if len(ticks.get_ticklocs()) == len(container) else []
    sizes = [each.get_height() if is_vertical else each.get_width() for each in container]
    middles = [each.get_x() + each.get_width() / 2 if is_vertical else each.get_y() for each in container]
    return {"type": "bar", "label": _label(container), "points": _points(names or middles, sizes)}


def _label(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _points(x: Any, y: Any) -> list[list[Any]]:
    return [[_number(a), _number(b)] for a, b in list(zip(x, y))[:_MAX_POINTS]]


def _number(value: Any) -> Any:
    """Return a number or a text for JSON: numpy's numbers as Python's, a date as text, no infinity."""
    if isinstance(value, str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if abs(number) < float("inf") else None
