"""The order in which tests run, by what was measured: a parallel run ends when its last worker does."""

from __future__ import annotations

import pytest


def sort(items: list[pytest.Item]) -> None:
    """Sort: tests that need no image, while images are built; then those that do, the longest files first."""
    items.sort(key=lambda item: (item.get_closest_marker("image") is not None,))
