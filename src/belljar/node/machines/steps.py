"""How long each named step of something took, in milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Steps:
    """Names the time since the last step."""

    phases: dict[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    def done(self, name: str) -> None:
        now = time.monotonic()
        self.phases[name] = round((now - self.at) * 1000, 3)
        self.at = now
