"""A progress that is not shown."""

from __future__ import annotations


class SilentProgress:
    """Discards the steps of a build."""

    def step(self, text: str) -> None:
        pass
