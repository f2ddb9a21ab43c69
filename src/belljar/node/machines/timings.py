"""Times the named steps of a procedure, in milliseconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class StepTimings:
    """The duration of each step, by its name, in the order of the steps."""

    phases: dict[str, float] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)

    def record(self, name: str) -> None:
        """Record the time since the step before as the duration of step `name`."""
        now = time.monotonic()
        self.phases[name] = round((now - self.at) * 1000, 3)
        self.at = now
