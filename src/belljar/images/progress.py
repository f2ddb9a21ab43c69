"""The interface by which builds report their progress; the command line prints it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of a build; must not raise."""

    def step(self, text: str) -> None:
        """Report that a step begins."""
        ...
