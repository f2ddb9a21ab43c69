"""How a long piece of work says where it is; the command line draws it, tests ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by whoever works; must not raise."""

    def step(self, text: str) -> None:
        """A new step begins."""
        ...


class Silent:
    """Progress that nobody watches."""

    def step(self, text: str) -> None:
        pass
