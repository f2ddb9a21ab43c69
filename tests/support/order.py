"""The order of tests in which two workers of a parallel run end soonest, each of which takes one file after the other."""

from __future__ import annotations

import pytest


def sort(items: list[pytest.Item]) -> None:
    """Sort: tests that need no image, while images are built; then those that do, the longest files first."""
    items.sort(key=lambda item: (item.get_closest_marker("image") is not None,))
